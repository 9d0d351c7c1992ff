"""Text of whole numbers is read as DuckDB reads it, down to the words of a refusal."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigma.datamodules import formats
from sigma.datamodules.readers.whole_numbers import whole_numbers
from sigma.errors import UserError
from tests.datamodules.reading import read, same
from tests.runs.front_door import Logged, Patch

Quick = list[bool]
SIGNS = {"csv": ",", "tsv": "\t", "txt": " ", "dat": "::", "psv": "|", "inter": "\t"}
CHANGES = (b"0", b"7", b"-", b".", b" ", b"\n", b"\n\n", b",", b"\t", b'"', b"a", b"\r", b"")


@pytest.fixture
def quick(monkeypatch: Patch) -> Quick:
    """Whether each file was read without DuckDB."""
    calls: Quick = []

    def look(*arguments: Any) -> Any:
        table = whole_numbers(*arguments)
        calls.append(table is not None)
        return table

    monkeypatch.setattr(formats, "whole_numbers", look)
    return calls


def table(ending: str, rng: random.Random, headed: bool) -> str:
    sign, start = SIGNS[ending], rng.choice([900_000_000, 1_600_000_000_000])
    rows = [
        (rng.randint(0, 30), rng.choice([0, 5, 10**17, 123_456]), 4, start + rng.randrange(10**6))
        for _ in range(60)
    ]
    names = ["user_id", "item_id", "rating", "timestamp"]
    if ending == "inter":
        names = [f"{name}:token" for name in names]
    lines = [sign.join(map(str, row)) for row in rows]
    return "\n".join([*([sign.join(names)] if headed else []), *lines, ""])


def sequences(rng: random.Random) -> str:
    users = rng.sample(range(1000), 40)
    rows = [[user, *rng.choices(range(200), k=rng.randint(1, 9))] for user in users]
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def outcome(path: Path, caplog: Logged) -> tuple[Any, list[str]]:
    """What a file gives, and what is said of it."""
    caplog.clear()
    try:
        result: Any = read(path)
    except UserError as error:
        result = str(error)
    return result, [record.getMessage() for record in caplog.records]


def both(path: Path, caplog: Logged, monkeypatch: Patch) -> bool:
    """Whether a file gives the same by both ways."""
    ours = outcome(path, caplog)
    with monkeypatch.context() as patch:
        patch.setattr(formats, "whole_numbers", lambda *_: None)
        theirs = outcome(path, caplog)
    if isinstance(ours[0], str) or isinstance(theirs[0], str):
        return ours == theirs
    return same(ours[0], theirs[0]) and ours[1] == theirs[1]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("ending", [*SIGNS, "sequences"])
def test_whole_files(
    ending: str, ends: str, quick: Quick, tmp_path: Path, caplog: Logged, monkeypatch: Patch
) -> None:
    for seed in range(4):
        rng = random.Random(seed)
        headed = ending not in ("txt", "dat")
        text = sequences(rng) if ending == "sequences" else table(ending, rng, headed)
        path = tmp_path / f"{seed}.{'txt' if ending == 'sequences' else ending}"
        path.write_bytes(text.replace("\n", ends).encode())
        # Without a header a table of four columns says by its ending alone what it is.
        expected = ending != "txt"
        assert both(path, caplog, monkeypatch)
        assert quick == [expected] or not expected
        quick.clear()


def test_names_that_are_given(quick: Quick, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text(" 7  8 900000000\n\n7 9\t900000001 \n")
    data = read(path, names=("user", "item", "timestamp"))
    assert data.user_ids.tolist() == ["7"]
    assert data.item_ids.tolist() == ["8", "9"]
    assert data.timestamps is not None
    assert data.timestamps.tolist() == [900_000_000, 900_000_001]
    assert quick == [True]


@pytest.mark.parametrize("ending", [*SIGNS, "sequences"])
def test_damaged_files(
    ending: str, quick: Quick, tmp_path: Path, caplog: Logged, monkeypatch: Patch
) -> None:
    for seed in range(10):
        rng = random.Random(seed)
        headed = rng.random() < 0.5 or ending == "inter"
        text = sequences(rng) if ending == "sequences" else table(ending, rng, headed)
        data = bytearray(text.encode())
        for _ in range(rng.choice([1, 1, 3])):
            place = rng.randrange(len(data))
            data[place : place + rng.randint(0, 1)] = rng.choice(CHANGES)
        path = tmp_path / f"{seed}.{'txt' if ending == 'sequences' else ending}"
        path.write_bytes(bytes(data))
        assert both(path, caplog, monkeypatch), (seed, path.read_bytes()[:300])
    assert any(quick) or ending == "txt"
    assert not all(quick)


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("txt", "7 01 2\n8 1 3\n"),  # 01 is not 1
        ("txt", "7 1 2\n7 3\n"),  # a user on two lines
        ("txt", "7 1 2\n8\n"),
        ("csv", "user,item,time\n7,1,5\n7,2,6\n"),  # small times may be anything
        ("csv", "user,item,time\n7,1,900000000\n7,2,1600000000000\n"),
        ("csv", "user,item\n7,1\n7,\n"),
        ("csv", f"user,item\n7,{10**18}\n7,2\n"),
    ],
)
def test_what_needs_a_closer_look(ending: str, text: str, quick: Quick, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    path.write_text(text)
    try:
        ids = read(path).item_ids
    except UserError:
        ids = np.array([])
    assert "01" in ids or "01" not in text
    assert quick == [False]
