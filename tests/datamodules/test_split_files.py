"""Data sets that come as three files: training, validation and test."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sigma.datamodules.sets.custom import Custom
from sigma.errors import UserError
from tests.in_process import call
from tests.runs.front_door import row

Line = tuple[str, str, int]
EVERY: dict[str, Any] = {"user_bounds": (None, None), "item_bounds": (None, None)}
NAMES = ("reviews.train.csv", "reviews.valid.csv", "reviews.test.csv")


def write(folder: Path, parts: list[list[Line]], names: tuple[str, ...] = NAMES) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in zip(names, parts, strict=True):
        text = [f"{user},{item},{time},a b c" for user, item, time in lines]
        (folder / name).write_text("\n".join(["user_id,item_id,timestamp,history", *text, ""]))
    return folder


def custom(folder: Path, **settings: Any) -> Custom:
    options = {"path": str(folder), "root": folder.parent / "root", "split": "files"}
    return Custom(**(options | EVERY | settings))


def lines(seed: int) -> list[list[Line]]:
    """Parts drawn at random, so neither in order of time nor with every user in each."""
    draw = random.Random(seed)
    parts: list[list[Line]] = [[], [], []]
    for _ in range(400):
        user, item = f"u{draw.randrange(30)}", f"i{draw.randrange(50)}"
        parts[draw.choices(range(3), (7, 2, 1))[0]].append((user, item, draw.randrange(99)))
    parts[2] += [("u0", "cold", 100), ("stranger", "i1", 5), ("stranger", "i2", 6)]
    return parts


def named(data: Custom, positions: np.ndarray) -> list[tuple[list[str], str]]:
    """Input and target of each sample, as raw ids."""
    s = data.sequences
    users = np.searchsorted(s.offsets, positions, side="right") - 1
    raw = [str(s.item_ids[i - 1]) for i in s.items]
    return [(raw[s.offsets[u] : p], raw[p]) for u, p in zip(users, positions, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_samples_beside_a_loop(seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = lines(seed)
    expected: list[list[tuple[list[str], str]]] = [[], [], []]
    back = 0
    for user in sorted({user for part in parts for user, _, _ in part}):
        history: list[str] = []
        before = -1
        for number, part in enumerate(parts):
            own = sorted((line for line in part if line[0] == user), key=lambda line: line[2])
            back += bool(own) and own[0][2] < before
            before = own[-1][2] if own else before
            for _, item, _ in own:
                if history:
                    expected[number].append((list(history), item))
                history.append(item)
    folder = write(tmp_path / "own", parts)
    for data in (custom(folder), custom(folder)):  # the second is from the cache
        split = data.split
        for positions, samples in zip((split.train, split.val, split.test), expected, strict=True):
            assert sorted(named(data, positions)) == sorted(samples)
    warm = {item for _, item, _ in parts[0]}
    cold = sum(item not in warm for _, item in expected[2])
    assert data.statistics.test_cold == cold >= 1
    assert f"in order of time: {back} times" in caplog.text
    assert "1 of 31 users have nothing in the training file" in caplog.text


@pytest.mark.parametrize(
    "names", [("train.csv", "val.csv", "test.csv"), ("a_Training.csv", "a-dev.csv", "test-a.csv")]
)
def test_names_of_the_parts(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = write(tmp_path / "own", lines(0), names)
    (folder / "latest-retrained_validity.txt").write_text("none of these words\n")
    assert custom(folder).statistics.interactions == 403


def test_what_does_not_make_a_split(tmp_path: Path) -> None:
    folder = write(tmp_path / "own", lines(0))
    with pytest.raises(UserError, match=r"leave out \d+ of the 403 .*'dataset.user_bounds=\[null"):
        custom(folder, user_bounds=(20, None)).setup()
    with pytest.raises(UserError, match=r"needs the folder of three files .*train.csv is none"):
        custom(folder / NAMES[0]).setup()
    with pytest.raises(UserError, match=r"in dataset.path, which names 2\."):
        custom(folder, path=[str(folder / name) for name in NAMES[:2]]).setup()
    with pytest.raises(UserError, match=r"/gone.csv is no file"):
        custom(folder, path=[str(folder / name) for name in (*NAMES[:2], "gone.csv")]).setup()
    (folder / "more_test.csv").write_text("")
    with pytest.raises(UserError, match=r"holds 2 files of the test part"):
        custom(folder).setup()
    (folder / NAMES[1]).rename(folder / "other.csv")
    with pytest.raises(UserError, match=r"holds no files of the val part.*reviews.val.csv; it"):
        custom(folder).setup()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_list_of_files_and_lines_left_out(kind: str, tmp_path: Path) -> None:
    """Neither moves the border between two parts."""
    parts = [[("a", "x", 1), ("a", "y", 2), ("b", "x", 9)], [("a", "z", 3)], [("a", "x", 4)]]
    folder = write(tmp_path / "own", [[*part, ("", "x", 5)] for part in parts], ("p", "q", "r"))
    paths = []
    for name in "pqr":
        (folder / name).rename(folder / f"{name}.csv")
        paths.append(str(folder / f"{name}.{kind}"))
        if kind == "parquet":
            table = pd.read_csv(folder / f"{name}.csv", dtype=str)
            table.astype({"timestamp": int}).to_parquet(paths[-1])
    data = custom(folder, path=paths, missing="drop")
    assert data.sequences.parts.tolist() == [0, 0, 1, 2, 0]
    assert data.statistics.left_out == 3
    one_table = custom(folder, path=paths, missing="drop", split="leave_one_out")
    assert one_table.sequences.parts is None  # nor does it take the other's from the cache


def test_another_split_of_the_same_interactions_is_other_data(tmp_path: Path) -> None:
    lines = [("a", "x", 1), ("a", "y", 2), ("a", "x", 3), ("a", "y", 4), ("a", "x", 5)]
    first = custom(write(tmp_path / "one", [lines[:2], lines[2:3], lines[3:]])).sequences
    other = custom(write(tmp_path / "two", [lines[:3], lines[3:4], lines[4:]])).sequences
    assert np.array_equal(first.items, other.items)
    assert first.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("name", ["custom", "ml_100k"])
def test_a_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "own", lines(0))
    files = [str(folder / file) for file in NAMES]
    path = str(folder) if name == "custom" else f"[{','.join(files)}]"
    typed = ["model=popularity", f"dataset={name}", f"dataset.path={path}", "dataset.split=files"]
    typed += ["dataset.user_bounds=[null,null]", "dataset.item_bounds=[null,null]", "logger=none"]
    typed += [f"dataset.root={tmp_path / 'root'}", f"hydra.run.dir={tmp_path / 'run'}"]
    assert call(monkeypatch, *typed, "dataset.targets=last") == 0
    assert row(tmp_path / "run")["data"]["test_cold"] == 1
    path = row(tmp_path / "run")["config"]["dataset"]["path"]
    assert path == (str(folder) if name == "custom" else list(NAMES))
