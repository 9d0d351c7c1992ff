"""CSV for people: no cell is a formula, and every text comes back."""

import csv
import random
from pathlib import Path

import pandas as pd
import pytest

from sigma.spreadsheet import note, raw_text, write_csv

FORMULAS = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "＝1",
    "a;=1",
    "a\n=1",
]
PLAIN = ["-5", "+5.5e3", "a-b", "B000=1", "", "'", "it's", "a; b", "Ünï", "5", "x\ty"]


def cells(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return [row[0] for row in csv.reader(file)][1:]


def test_formulas_become_text_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "a" / "t.csv"
    table = pd.DataFrame({"item": [*FORMULAS, *PLAIN]})
    assert write_csv(table, path) == len(FORMULAS)
    written = cells(path)
    assert written[len(FORMULAS) :] == PLAIN
    for text in written[: len(FORMULAS)]:
        for cell in text.replace("\t", ";").replace("\n", ";").replace("\r", ";").split(";"):
            assert cell[:1] not in {"=", "+", "-", "@", "＝"}
    assert [raw_text(text) for text in written] == table["item"].tolist()
    assert "raw_text" in note(3)


def test_numbers_and_gaps_stay(tmp_path: Path) -> None:
    table = pd.DataFrame({"score": [-5.5, None], "n": [-1, 2], "title": [None, "=x"], "-a": [1, 2]})
    assert write_csv(table, tmp_path / "t.csv") == 1
    expected = table.assign(title=[None, "'=x"])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), expected, check_dtype=False)


@pytest.mark.parametrize("seed", range(3))
def test_any_text_comes_back(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    texts = ["".join(draw.choices("'=+-@;\t\r\n\"a5,", k=draw.randrange(1, 7))) for _ in range(999)]
    write_csv(pd.DataFrame({"item": texts, "place": 1}), tmp_path / "t.csv")
    assert [raw_text(text) for text in cells(tmp_path / "t.csv")] == texts
