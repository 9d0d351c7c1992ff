"""What comes next for any history, against the model by hand, of every form and file."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sigma import Recommender
from sigma.errors import UserError
from sigma.hindsight import hindsight
from sigma.histories import histories_of
from sigma.ops import rows_of
from sigma.ranking.scores import first_items
from sigma.recommend import main, show
from sigma.spreadsheet import raw_text
from sigma.tables import HistoryFile, write_tables
from sigma.trained import load
from tests.runs.front_door import ROOT, Capture, Logged, write_sequences
from tests.test_hindsight import trained

HISTORIES = {"a": ["5", "6", "7"], "b": ["12"], "c": ["30", "31", "5", "30"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("data") / "clicks.txt")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return trained(patch, tmp_path_factory.mktemp("runs") / "sigma", data)


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender.load(run, device="cpu")


def by_hand(recommender: Recommender, history: list[str]) -> pd.Series:
    """Scores of all items after one history, by raw id, from the model alone."""
    names = [str(raw) for raw in recommender.run.sequences.item_ids]
    items = torch.tensor([names.index(item) + 1 for item in history][-12:])
    with torch.inference_mode():
        last = torch.tensor([len(items) - 1])
        states = recommender.model(items, rows_of(torch.tensor([len(items)])), last)
        return pd.Series(recommender.model.logits(states)[0].numpy(), names)


def expect_by_hand(recommender: Recommender, table: pd.DataFrame, unseen: bool = True) -> None:
    assert table["user"].drop_duplicates().tolist() == list(HISTORIES)
    for user, part in table.groupby("user"):
        scores = by_hand(recommender, HISTORIES[str(user)])
        if unseen:
            scores = scores.drop(HISTORIES[str(user)], errors="ignore")
        best = scores.sort_values(ascending=False, kind="stable")[: len(part)]
        assert part["item"].tolist() == best.index.tolist()
        assert part["place"].tolist() == list(range(1, len(part) + 1))
        np.testing.assert_allclose(part["score"], best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unseen", [True, False])
def test_the_first_items_are_those_of_the_model(recommender: Recommender, unseen: bool) -> None:
    table = recommender.recommend(HISTORIES, k=4, unseen=unseen)
    assert len(table) == 12
    expect_by_hand(recommender, table, unseen)


def test_every_form_of_a_history_gives_the_same(recommender: Recommender) -> None:
    expected = recommender.recommend(HISTORIES, k=4)
    lines = [(user, item, t) for user, items in HISTORIES.items() for t, item in enumerate(items)]
    table = pd.DataFrame(lines, columns=["userId", "movieId", "timestamp"])
    shuffled = table.sort_values("timestamp", ascending=False, kind="stable")
    forms: list[Any] = [table, table.drop(columns="timestamp"), table.astype({"movieId": int})]
    forms.append(table.assign(timestamp=pd.to_datetime(table["timestamp"], unit="D")))
    for form in forms:
        pd.testing.assert_frame_equal(recommender.recommend(form, k=4), expected)
    by_user = recommender.recommend(shuffled, k=4).sort_values(["user", "place"])
    pd.testing.assert_frame_equal(by_user.reset_index(drop=True), expected)
    listed = recommender.recommend([[int(i) for i in h] for h in HISTORIES.values()], k=4)
    assert listed["item"].tolist() == expected["item"].tolist()
    assert listed["user"].unique().tolist() == [0, 1, 2]
    one = recommender.recommend(np.array([5, 6, 7]), k=4)  # type: ignore[arg-type]
    assert one["item"].tolist() == expected["item"].tolist()[:4]


def test_all_that_is_known_of_a_user_and_the_tests_question(recommender: Recommender) -> None:
    sequences, split = recommender.run.sequences, recommender.data.split
    ids = [str(raw) for raw in sequences.item_ids]
    spans = zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)
    everything = {
        str(user): [ids[i - 1] for i in sequences.items[first:stop]]
        for user, (first, stop) in zip(sequences.user_ids, spans, strict=True)
    }
    expected = recommender.recommend(everything, k=3)
    pd.testing.assert_frame_equal(recommender.recommend(users=list(everything), k=3), expected)
    before = {user: items[:-1] for user, items in everything.items()}
    assert len(split.test) == len(before)
    asked, tested = recommender.recommend(before, k=3, unseen=False), hindsight(recommender, k=3)
    assert asked["item"].tolist() == tested["item"].tolist()
    assert asked["score"].tolist() == tested["score"].tolist()


def test_what_the_model_does_not_know(recommender: Recommender, caplog: Logged) -> None:
    histories = {"a": ["5", "new", "6"], "nobody": ["what", "ever"], "empty": []}
    table = recommender.recommend(histories, k=3)
    assert "3 interactions with items that the model does not know" in caplog.text
    assert "3 histories; 2 without a known one get the most popular" in caplog.text
    counts = dict(zip(recommender.items, recommender.data.item_counts().tolist(), strict=True))
    popular = sorted(counts, key=lambda raw: -counts[raw])[:3]
    for user in ("nobody", "empty"):
        part = table[table["user"] == user]
        assert part["item"].tolist() == popular
        assert part["known"].tolist() == [0, 0, 0]
        assert part["score"].tolist() == [counts[raw] for raw in popular]
    known = recommender.recommend({"a": ["5", "6"]}, k=3)
    assert table[table["user"] == "a"]["item"].tolist() == known["item"].tolist()


def test_candidates_scores_states_and_neighbours(recommender: Recommender) -> None:
    some = ["9", "2", "31", "17"]
    scores = recommender.score(HISTORIES, some)
    assert scores.columns.tolist() == some
    for user, history in HISTORIES.items():
        np.testing.assert_allclose(scores.loc[user], by_hand(recommender, history)[some], rtol=1e-4)
    table = recommender.recommend(HISTORIES, k=10, candidates=some, unseen=False)
    for user, part in table.groupby("user"):
        best = scores.loc[user].sort_values(ascending=False)
        assert part["item"].tolist() == best.index.tolist()
    assert (
        "31" not in recommender.recommend({"c": HISTORIES["c"]}, candidates=some)["item"].tolist()
    )
    states = recommender.embed({**HISTORIES, "nobody": ["what"]})
    table_of_items = recommender.model.items.weight[1:].detach().numpy()  # type: ignore[union-attr]
    columns = recommender.items.get_indexer(some)
    np.testing.assert_allclose(states[:3] @ table_of_items[columns].T, scores, rtol=1e-4)
    assert np.isnan(states[3]).all()
    alike = recommender.similar_items("5", k=40)
    unit = table_of_items / np.linalg.norm(table_of_items, axis=1, keepdims=True)
    cosines = pd.Series(unit @ unit[recommender.items.get_loc("5")], recommender.items).drop("5")
    np.testing.assert_allclose(alike["score"], cosines.sort_values(ascending=False), atol=1e-6)
    assert "5" not in alike["item"].tolist()


def test_of_equal_scores_the_first_item_comes_first() -> None:
    scores = torch.tensor([[1.0, 3, 3, 0, 3, float("nan")], [2, 2, 2, 2, 2, 2]])
    items, values = first_items(scores, 3)
    assert items.tolist() == [[2, 3, 5], [1, 2, 3]]
    assert values.tolist() == [[3, 3, 3], [2, 2, 2]]
    hidden = (torch.tensor([0, 1]), torch.tensor([2, 0]))
    assert first_items(scores, 2, hidden=hidden)[0].tolist() == [[2, 5], [2, 3]]
    ids, _ = first_items(scores, 9, candidates=torch.tensor([1, 2, 6]), hidden=hidden)
    assert ids.tolist() == [[2, 1, 0], [2, 6, 0]]
    draws = torch.randint(0, 4, (50, 30), generator=torch.Generator().manual_seed(0)).double()
    expected = draws.sort(dim=1, descending=True, stable=True).indices[:, :7] + 1
    assert torch.equal(first_items(draws, 7)[0], expected)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda r: r.recommend(), "either histories or users"),
        (lambda r: r.recommend(["5"], k=0), "k=0 must be at least 1"),
        (lambda r: r.recommend(users=["who"]), "no user who among the 120"),
        (lambda r: r.recommend("5 6"), "not '5 6'"),
        (lambda r: r.recommend([["5"], "6"]), "some of it are none"),
        (lambda r: r.recommend(pd.DataFrame({"item": ["5"]})), "no column of the user"),
        (lambda r: r.recommend(["5", None]), "item of line 2 of the histories is missing"),
        (lambda r: r.recommend(["5"], candidates=["what"]), "knows no item what"),
        (lambda r: r.recommend(["5"], candidates=[]), "knows no item of no name"),
        (
            lambda r: r.recommend(pd.DataFrame({"user": [1], "item": [5], "time": ["soon"]})),
            "timestamps of the histories cannot be read",
        ),
    ],
)
def test_slips_are_one_sentence(recommender: Recommender, ask: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        ask(recommender)
    assert "\n" not in str(caught.value)


def test_a_history_that_goes_on(data: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        run = trained(patch, tmp_path / "run", data, model="mamba4rec")
    recommender = Recommender(load(run), "cpu")
    session, history = recommender.session(), ["5", "6", "new", "30", "5", "7"]
    for length in range(len(history) + 1):
        if length:
            session.add(history[length - 1])
        for unseen in (True, False):
            expected = recommender.recommend([history[:length]], k=5, unseen=unseen)
            table = session.recommend(k=5, unseen=unseen)
            assert table["item"].tolist() == expected["item"].tolist()
            np.testing.assert_allclose(table["score"], expected["score"], rtol=1e-4)
            assert table["known"].tolist() == expected["known"].tolist()
    assert (len(session), session.unknown) == (5, 1)
    begun = recommender.session(history)
    assert begun.recommend(k=5)["item"].tolist() == session.recommend(k=5)["item"].tolist()
    with pytest.raises(UserError, match="k=0"):
        begun.recommend(k=0)
    # And every example of the page runs.
    page, names = (ROOT / "docs" / "recommend.md").read_text(), dict[str, Any]()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 1
    for block in blocks:
        exec(block.replace("runs/a", str(run)), names)


def test_a_model_that_reads_all_again_has_no_session(recommender: Recommender) -> None:
    with pytest.raises(UserError, match=r"not causal.*Ask recommend\(history\) instead"):
        recommender.session(["5"])


@pytest.mark.parametrize("name", ["popularity", "item_knn", "bert4rec", "hstu_time"])
def test_models_of_other_kinds(name: str, data: Path, tmp_path: Path) -> None:
    """Counted ones, one that predicts a mask, and one that reads the target's time."""
    table = pd.DataFrame(
        [
            (user, item, 10 * user + place)
            for user, line in enumerate(data.read_text().splitlines())
            for place, item in enumerate(line.split()[1:])
        ],
        columns=["user", "item", "timestamp"],
    )
    table.to_csv(tmp_path / "clicks.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        run = trained(patch, tmp_path / "run", tmp_path / "clicks.csv", model=name)
    recommender = Recommender(load(run), "cpu")
    before = table[table["user"] < 9].groupby("user").head(-1)
    users = [str(user) for user in before["user"].unique()]
    asked = recommender.recommend(before.astype({"user": str}), k=3, unseen=False)
    if name != "hstu_time":  # which is told when the target was
        tested = hindsight(recommender, users, k=3)
        assert asked["item"].tolist() == tested["item"].tolist()
        return
    assert len(asked) == 27
    with pytest.raises(UserError, match="give histories a timestamp"):
        recommender.recommend(["5"])


@pytest.mark.parametrize(
    "name", ["new.parquet", "new.csv", "new.tsv", "new.jsonl", "lists.parquet"]
)
def test_a_file_of_histories(
    name: str, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, number = np.random.default_rng(1), 9000
    table = pd.DataFrame(
        {
            "user_id": rng.integers(100, 460, number).astype(str),
            "item": rng.integers(1, 45, number).astype(str),  # some of which nobody knows
            "ts": rng.integers(0, 50, number),  # many alike
        }
    )
    path, expected = tmp_path / name, histories_of(table, recommender.items)
    match path.suffix:
        case ".parquet":
            table.to_parquet(path, row_group_size=700)
        case ".jsonl":
            table.to_json(path, orient="records", lines=True)
        case _:
            table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    if name == "lists.parquet":
        ordered = table.sort_values("ts", kind="stable")
        lists = ordered.groupby("user_id", sort=False)["item"].agg(list)
        lists = lists.loc[table["user_id"].unique()]
        lists.rename("items").reset_index().to_parquet(path)
    monkeypatch.setattr("sigma.tables.LINES", 2048)  # DuckDB's own least
    file = HistoryFile(path)
    assert abs(file.users - len(expected.users)) < 20
    parts = list(file.parts(recommender.items))
    assert (len(parts) > 2) == (name != "lists.parquet")
    users = np.concatenate([part.users for part in parts])
    items = [h for part in parts for h in np.split(part.items, part.offsets[1:-1])]
    wanted = dict(
        zip(expected.users, np.split(expected.items, expected.offsets[1:-1]), strict=True)
    )
    if name != "lists.parquet":
        assert users.tolist() == sorted(wanted)
    assert set(users) == set(wanted)
    for user, history in zip(users, items, strict=True):
        assert history.tolist() == wanted[user].tolist()
    assert sum(part.unknown for part in parts) == expected.unknown > 0
    if name != "lists.parquet":
        times = np.concatenate([part.times for part in parts])  # type: ignore[misc]
        assert sorted(times) == sorted(expected.times)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.csv", None, "does not exist"),
        ("a.xlsx", "x", "the ending is not one of"),
        ("a.csv", "user,what\n1,2\n", "no column that looks like the item"),
        ("a.csv", "user,item,time\n1,2,5\n1,,6\n", "the item of line 2 is missing"),
        ("a.csv", "user,item,time\n1,2,5\n1,3,soon\n", "the time of line 2 is missing"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.jsonl", '{"user": 1, "item": ', "cannot be read"),
    ],
)
def test_a_bad_file_of_histories(
    name: str, content: str | None, sentence: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        HistoryFile(tmp_path / name)
    assert "\n" not in str(caught.value)


STRANGE = ["[red]=1", "=cmd|' /C calc'!A0", "\x1b[2J\n[/x]", "x" * 5000]


def test_ids_and_titles_are_text(tmp_path: Path, capsys: Capture) -> None:
    """On the terminal nothing acts, in a spreadsheet neither; the file has the very ids."""
    table = pd.DataFrame({"user": "[/u]\x07", "place": range(1, 5), "item": STRANGE, "score": -0.5})
    table = table.assign(target=STRANGE[1], rank=2.0, history_length=3, greater=1, ties=0)
    table["title"] = [f"{item} [pack of 3]" for item in STRANGE]
    show(table)
    output = capsys.readouterr().out
    assert output.replace("\n", "").isprintable()
    assert "User [/u]\\x07, 3 items: the next one is =cmd|' /C calc'!A0, rank 2" in output
    assert "\\x1b[2J\\n[/x] [pack of 3]" in output
    assert "=cmd|' /C calc'!A0 [pack of 3]*" in output
    assert max(map(len, output.splitlines())) < 250
    lines, changed = write_tables(tmp_path / "top.csv", [table[:1], table[1:]])
    assert (lines, changed) == (4, 6)
    written = pd.read_csv(tmp_path / "top.csv")
    assert written["target"].unique().tolist() == [f"'{STRANGE[1]}"]
    assert written["item"].map(raw_text).tolist() == STRANGE
    assert written["score"].tolist() == [-0.5] * 4


def test_the_command_line(run: Path, tmp_path: Path, capsys: Capture) -> None:
    main([f"run={run}", "users=3,7", "k=2"])
    output = capsys.readouterr().out
    assert output.count("User ") == 2
    main([f"run={run}", "test=3", "k=2"])
    assert ": the next one is " in capsys.readouterr().out
    out = tmp_path / "all" / "top.parquet"
    main([f"--run={run}", "k=2", "users=all", f"out={out}"])
    assert "240 recommendations" in capsys.readouterr().out
    expected = Recommender.load(run).recommend(users=all_users(run), k=2)
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected, check_dtype=False)
    lines = [json.dumps({"user": u, "items": items}) for u, items in HISTORIES.items()]
    (tmp_path / "new.jsonl").write_text("\n".join(lines))
    main([f"run={run}", f"histories={tmp_path / 'new.jsonl'}", "k=4", f"out={tmp_path / 'a.csv'}"])
    written = pd.read_csv(tmp_path / "a.csv", dtype={"user": str, "item": str})
    expect_by_hand(Recommender.load(run), written)


def all_users(run: Path) -> list[str]:
    return [str(raw) for raw in load(run).sequences.user_ids]


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["users=3"], "--run"),
        (["run=here"], "users=5050,12"),
        (["run=here", "users=3", "test=3"], "Give one of"),
        (["run=here", "users=all"], "add out=recommendations.csv"),
        (["run=here", "users=3", "unseen=si"], "unseen"),
        (["run=here", "users=3"], "here holds no config.json"),
    ],
)
def test_slips_on_the_command_line(typed: list[str], answer: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(typed)
    assert ended.value.code
    captured = capsys.readouterr()
    assert answer in captured.err
    assert "Traceback" not in captured.err
