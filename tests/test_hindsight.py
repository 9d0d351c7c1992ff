"""What a run would have recommended before its test targets: ranks equal those of the test."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sigma.datamodules.splits import leave_one_out
from sigma.errors import UserError
from sigma.hindsight import hindsight
from sigma.ops import rows_of
from sigma.recommender import Recommender
from sigma.trained import TrainedRun, load
from tests.in_process import arguments, call
from tests.runs.front_door import Patch, write_sequences

# One of each kind: paths of evaluation, states and checkpoints differ between them.
MODELS = ("sigma", "bert4rec", "sigma_released", "markov", "vmis_knn", "item_knn")


def recommend(run: Path | TrainedRun, *arguments: Any, **options: Any) -> pd.DataFrame:
    of = load(run) if isinstance(run, Path) else run
    return hindsight(Recommender(of, "cpu"), *arguments, **options)


def trained(
    monkeypatch: Patch, folder: Path, data: Path, *typed: str, model: str = "sigma"
) -> Path:
    """A run of one epoch."""
    command = [*arguments(folder, data), f"model={model}", "trainer.max_epochs=1", *typed]
    if "sigma" not in model:  # nor has it the sizes of ``SMALL``
        command = [word for word in command if not word.startswith("model.")]
    assert call(monkeypatch, *command) == 0
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("data") / "clicks.txt")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return trained(patch, tmp_path_factory.mktemp("runs") / "sigma", data)


def expect_the_runs_ranks(table: pd.DataFrame, run: Path, unseen: bool = False) -> None:
    ranks = pd.read_parquet(run / "ranks.parquet")
    prefix = "unseen_" if unseen else ""
    names = ["user", "target", "history_length", f"{prefix}greater", f"{prefix}ties"]
    table = table.rename(columns={name: prefix + name for name in ("greater", "ties")})
    ranks = ranks[names]
    mine = table.drop_duplicates(["user", "history_length"])[names]
    assert len(ranks) > 50
    pd.testing.assert_frame_equal(mine.reset_index(drop=True), ranks)


@pytest.mark.parametrize("name", MODELS)
def test_ranks_are_those_of_the_test(
    name: str, data: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    run = trained(monkeypatch, tmp_path / name, data, "dataset.eval_batch_size=50", model=name)
    expect_the_runs_ranks(recommend(run, k=6), run)
    table = recommend(run, k=6, unseen=True)
    expect_the_runs_ranks(table, run, unseen=True)
    assert (table["rank"] == table["greater"] + 1 + table["ties"] / 2).all()
    for _, part in table.groupby("user"):
        assert part["place"].tolist() == [1, 2, 3, 4, 5, 6]
        assert part["score"].is_monotonic_decreasing
        assert part["item"].is_unique
        hit = part[part["item"] == part["target"]]
        if len(hit):  # among its ties
            low, high = hit["greater"].iloc[0] + 1, hit["greater"].iloc[0] + 1 + hit["ties"].iloc[0]
            assert low <= hit["place"].iloc[0] <= high
        else:
            assert part["greater"].iloc[0] + part["ties"].iloc[0] >= 6


def test_scores_are_those_of_the_model(run: Path, data: Path) -> None:
    """One user, read from the raw line, without any of the batches."""
    loaded = load(run)
    line = data.read_text().splitlines()[6].split()
    raw, history, target = line[0], line[1:-1], line[-1]
    index = {str(item): i + 1 for i, item in enumerate(loaded.sequences.item_ids)}
    items = torch.tensor([index[item] for item in history if item in index][-12:])
    with torch.inference_mode():
        last = torch.tensor([len(items) - 1])
        states = loaded.task.model(items, rows_of(torch.tensor([len(items)])), last)
        scores = loaded.task.model.logits(states)[0]
    table = recommend(loaded, [raw], k=100)
    assert len(table) == loaded.data.num_items  # no more than there are
    assert (table["target"] == target).all()
    assert (table["history_length"] == len(history)).all()
    expected = scores.numpy()[[index[item] - 1 for item in table["item"]]]
    np.testing.assert_allclose(table["score"], expected, rtol=1e-4, atol=1e-5)


def test_users_come_as_asked_for_and_once_and_random_numbers_go_on(run: Path) -> None:
    torch.manual_seed(3)
    table = recommend(run, ["7", "3", "7"], k=2)
    following = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(following, torch.rand(3))
    assert table["user"].tolist() == ["7", "7", "3", "3"]
    everybody = recommend(run, k=2)
    for user in ("7", "3"):
        one, same = (t[t["user"] == user].reset_index(drop=True) for t in (table, everybody))
        pd.testing.assert_frame_equal(one, same)


def test_a_seen_item_is_not_recommended_where_that_is_asked_for(run: Path) -> None:
    loaded = load(run)
    sequences = loaded.sequences
    unseen = recommend(loaded, k=40, unseen=True)
    plain = recommend(loaded, k=40)
    ends = leave_one_out(sequences).test
    for user, raw in enumerate(sequences.user_ids):
        history = sequences.items[sequences.offsets[user] : ends[user]]
        seen = {str(sequences.item_ids[i - 1]) for i in history}
        listed = unseen[unseen["user"] == str(raw)]
        target = listed["target"].iloc[0]
        assert set(listed["item"]) == set(map(str, sequences.item_ids)) - (seen - {target})
        assert listed["rank"].iloc[0] <= plain.loc[plain["user"] == str(raw), "rank"].iloc[0]


def test_every_test_target_of_a_user_under_a_split_by_time(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    typed = ["model=popularity", "dataset=simulated", "dataset.shop.num_users=300"]
    typed += ["dataset.split=global_time", "logger=none", "trainer.max_epochs=1"]
    assert call(monkeypatch, *typed, f"hydra.run.dir={tmp_path / 'run'}") == 0
    table = recommend(tmp_path / "run", k=1)
    assert table["user"].duplicated().any()
    expect_the_runs_ranks(table, tmp_path / "run")


def test_the_data_may_have_moved(run: Path, data: Path, tmp_path: Path) -> None:
    copy, moved = tmp_path / "run", tmp_path / "moved.txt"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["dataset"]["path"] = str(tmp_path / "gone.txt")
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"gone\.txt does not exist"):
        load(copy)
    shutil.copy(data, moved)
    pd.testing.assert_frame_equal(recommend(load(copy, str(moved))), recommend(run))
    other = write_sequences(tmp_path / "other.txt", users=90)
    with pytest.raises(UserError, match=r"other data .120 users.* now 90 users"):
        load(copy, str(other))


def test_what_is_missing_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no user 5050 among the 120 "):
        recommend(run, ["3", "5050"])
    with pytest.raises(UserError, match=r"holds no config\.json"):
        recommend(tmp_path)
    with pytest.raises(UserError, match="k=0 must be at least 1"):
        recommend(run, k=0)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    best = copy / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        recommend(copy)
    best.unlink()
    with pytest.raises(UserError, match=r"best\.ckpt is missing"):
        recommend(copy)
