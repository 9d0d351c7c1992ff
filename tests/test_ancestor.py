"""Runs that begin from another's weights, with newer data: row by row, and through the front."""

import json
import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from sigma import Recommender
from sigma.ancestor import by_item, read_ancestor
from sigma.errors import UserError
from sigma.runs.identity import run_id
from sigma.trained import load
from tests.in_process import arguments, call
from tests.runs.front_door import Capture, Patch, row, write_sequences
from tests.test_hindsight import trained


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("data") / "clicks.txt")


@pytest.fixture(scope="module")
def newer(data: Path) -> Path:
    """The same users with later items, some of them new, and new users; other first lines."""
    draw, lines = random.Random(5), data.read_text().splitlines()
    lines = [f"{line} {draw.randrange(35, 50)} {draw.randrange(35, 50)}" for line in lines]
    users = range(900, 930)
    lines += [" ".join(map(str, [user, *draw.choices(range(30, 50), k=9)])) for user in users]
    path = data.with_name("newer.txt")
    path.write_text("\n".join(reversed(lines)) + "\n")
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        return trained(patch, tmp_path_factory.mktemp("runs") / "first", data)


def begun(folder: Path, run: Path, newer: Path, patch: Patch, *typed: str) -> int:
    words = [*arguments(folder, newer), f"init_from={run}", "trainer.max_epochs=1", *typed]
    return call(patch, *words)


def test_rows_of_items_go_by_their_ids() -> None:
    new, old = torch.zeros(6, 2), torch.arange(10.0).view(5, 2)  # 4 and 3 items, a row before
    places = torch.tensor([2, -1, 0, -1])
    table = by_item(new, old, 1, places, places >= 0)
    assert table[:, 0].tolist() == [0, 6, 0, 2, 0, 8]  # … and one after
    bias = by_item(torch.zeros(4), torch.tensor([1.0, 2, 3]), 0, places, places >= 0)
    assert bias.tolist() == [3, 0, 1, 0]


def test_weights_are_the_ancestors(
    run: Path, newer: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """After an epoch with a learning rate of nearly nothing they still are."""
    folder = tmp_path / "second"
    assert begun(folder, run, newer, monkeypatch, "task.optimizer.lr=1e-30") == 0
    before, after = load(run), load(folder)
    ids = [[str(raw) for raw in of.sequences.item_ids] for of in (before, after)]
    assert set(ids[1]) - set(ids[0])
    assert ids[1][: len(ids[0])] != ids[0]
    old, new = before.task.model.state_dict(), after.task.model.state_dict()
    for name in old.keys() - {"items.weight"}:
        torch.testing.assert_close(old[name], new[name])
    for place, raw in enumerate(ids[1], 1):
        if raw in ids[0]:
            expected = old["items.weight"][ids[0].index(raw) + 1]
            torch.testing.assert_close(new["items.weight"][place], expected)
        else:
            assert new["items.weight"][place].abs().sum() > 0
    known = len(set(ids[0]) & set(ids[1]))
    ancestor = row(folder)["ancestor"]
    assert ancestor["run"] == run_id(json.loads((run / "config.json").read_text()))
    assert ancestor["weights"] == read_ancestor(run).digest
    assert (ancestor["known_items"], ancestor["new_items"]) == (known, len(ids[1]) - known)
    assert row(folder)["config"]["init_from"] == "first"
    assert Recommender.load(folder).recommend(["5"], k=3)["known"].tolist() == [1, 1, 1]


def test_a_run_that_goes_on_keeps_its_own_weights(
    run: Path, newer: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    folder = tmp_path / "second"
    assert begun(folder, run, newer, monkeypatch) == 0
    first = row(folder)
    moved = tmp_path / "away"
    shutil.copytree(run, moved)
    monkeypatch.chdir(Path(__file__).parents[1])
    assert call(monkeypatch, f"resume={folder}", "trainer.max_epochs=2") == 0
    assert row(folder)["epochs"] == 2
    assert row(folder)["ancestor"] == first["ancestor"]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["model.hidden_size=16"], "is of another model"),
        (["model=gru4rec", "~model.mamba"], "is of another model"),
    ],
)
def test_another_model_is_refused(
    typed: list[str],
    sentence: str,
    run: Path,
    newer: Path,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Capture,
) -> None:
    if "model=gru4rec" in typed:
        words = [w for w in arguments(tmp_path / "x", newer) if not w.startswith("model.")]
        code = call(monkeypatch, *words, "model=gru4rec", f"init_from={run}")
    else:
        code = begun(tmp_path / "x", run, newer, monkeypatch, *typed)
    assert code == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_what_is_no_ancestor_is_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        read_ancestor(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    items, best = copy / "items.parquet", copy / "checkpoints" / "best.ckpt"
    content = items.read_bytes()
    items.write_bytes(content[:50])
    with pytest.raises(UserError, match="cannot be read"):
        read_ancestor(copy)
    items.unlink()
    with pytest.raises(UserError, match=r"holds no items\.parquet"):
        read_ancestor(copy)
    items.write_bytes(content)
    assert read_ancestor(copy).items.tolist() == pd.read_parquet(items)["item"].tolist()
    best.write_bytes(best.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        read_ancestor(copy)
