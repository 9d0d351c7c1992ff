"""CSV for people: a spreadsheet that opens it runs nothing of what ids and titles say."""

import csv
import re
from pathlib import Path
from typing import Any

import pandas as pd

from sigma.files import atomic_path

# Where a cell begins, or would where semicolons part cells; and what makes a formula of it.
_FORMULA = re.compile(r"^(?='*[=+\-@＝＋－＠\t\r\n])|(?<=[;\t\r\n])(?='*[=+\-@＝＋－＠])")
_MARK = re.compile(_FORMULA.pattern.replace("(?='*", "'(?='*"))
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def marked(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The table with an apostrophe before each text that would be a formula, and how many it is.

    Numbers such as -5 stay as they are; ``raw_text`` takes the apostrophe off.
    """
    safe = table.copy()
    for name, kind in table.dtypes.items():
        if not pd.api.types.is_numeric_dtype(kind):
            safe[name] = table[name].map(_marked, na_action="ignore")
    return safe, int((safe.ne(table) & table.notna()).sum().sum())


def write_csv(table: pd.DataFrame, path: Path) -> int:
    """Write the table that ``marked`` makes; how many texts it changed."""
    safe, changed = marked(table)
    with atomic_path(path) as partial:
        write_cells(safe, partial)
    return changed


def write_cells(table: pd.DataFrame, path: Path, **options: Any) -> None:
    """Write a table as it is; options as of pandas."""
    # A carriage return alone is quoted by this rule only.
    table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC, **options)


def _marked(value: Any) -> Any:
    is_text = isinstance(value, str) and not _NUMBER.fullmatch(value)
    return _FORMULA.sub("'", value) if is_text else value


def raw_text(text: str) -> str:
    """The id or title of which ``write_csv`` wrote this text."""
    return _MARK.sub("", text)


def note(changed: int) -> str:
    """A sentence about the texts that ``write_csv`` changed."""
    return (
        f"{changed:,} texts begin as a spreadsheet's formulas do (= + - @); an apostrophe stands "
        "before each, which sigma.spreadsheet.raw_text takes off."
    )
