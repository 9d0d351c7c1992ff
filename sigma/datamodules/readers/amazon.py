"""Amazon reviews of 2014, 2018 and 2023: ratings CSV without header, or review JSON lines."""

import ast
import json
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.lines import open_raw, readable
from sigma.datamodules.readers.stream import Columns, read_delimited, read_json_lines
from sigma.datamodules.readers.table import is_number
from sigma.errors import UserError

_SAMPLE = 1000  # lines looked at to tell users from items
_IDS = 100  # bytes of a line, in which they stand
_LITERAL = 1 << 20  # signs of a Python literal, whose parsing takes hundreds of times the memory
_NO_RECORD = (
    *(ValueError, SyntaxError, KeyError, AttributeError, TypeError),
    *(RecursionError, MemoryError),  # of the nesting, which Python's parser bounds
)


def is_rating(fields: list[str]) -> bool:
    """Whether a line is one of the ratings CSV: item (10 signs) and user (A…), rating, time."""
    if len(fields) != 4 or not all(map(is_number, fields[2:])):
        return False
    return any(
        len(item) == 10 and re.fullmatch("A[0-9A-Z]{9,}", user)
        for user, item in (fields[:2], fields[1::-1])
    )


def read_amazon_ratings(
    path: Path, meta: Path | None = None, malformed: str = "error"
) -> Interactions:
    """Ratings CSV; 2014 is ``user,item,rating,timestamp``, 2018 ``item,user,rating,timestamp``.

    The file does not say which it is, so the ids do: item ids (ASIN) have exactly 10 characters,
    nearly all user ids have more.

    Raises:
        UserError: neither column looks like items.
    """
    with readable(path), open_raw(path, quoted=True) as stream:
        head = [stream.readline()[:_IDS].decode("utf-8", "replace") for _ in range(_SAMPLE)]
    rows = [line.split(",")[:2] for line in head if "," in line]
    first, second = (sum(len(fields[k].strip(' "')) == 10 for fields in rows) for k in (0, 1))
    if first == second and rows:
        raise UserError(
            f"{path}: cannot tell users from items, as Amazon item ids have 10 characters in one "
            "of the first two columns only; add a header and use dataset=custom with "
            "dataset.columns.user= and dataset.columns.item=."
        )
    order = ("item", "user") if first > second else ("user", "item")
    return read_delimited(
        path,
        Columns("user", "item", "timestamp"),
        ",",
        (*order, "rating", "timestamp"),
        _titles(meta),
        malformed=malformed,
    )


def read_amazon_reviews(
    path: Path, meta: Path | None = None, malformed: str = "error"
) -> Interactions:
    """Review JSON lines with ``reviewerID``, ``asin`` and ``unixReviewTime``."""
    columns = Columns("reviewerID", "asin", "unixReviewTime")
    return read_json_lines(path, columns, pa.int64(), _titles(meta), malformed)


def read_amazon_reviews_2023(
    path: Path, meta: Path | None = None, malformed: str = "error"
) -> Interactions:
    """Review JSON lines with ``user_id``, ``parent_asin`` and ``timestamp`` (milliseconds)."""
    columns = Columns("user_id", "parent_asin", "timestamp")
    return read_json_lines(path, columns, pa.int64(), _titles(meta), malformed)


def _titles(path: Path | None) -> pd.DataFrame | None:
    """Titles by ASIN from ``meta_*.json``; that of 2014 holds Python literals, not JSON."""
    if path is None:
        return None
    titles: dict[str, str] = {}
    with readable(path), open_raw(path) as stream:
        for number, raw in enumerate(stream, start=1):
            line = raw.decode("utf-8", "replace").strip()
            if not line:
                continue
            try:
                try:
                    record = json.loads(line)
                except ValueError:
                    if len(line) > _LITERAL:
                        raise
                    record = ast.literal_eval(line)
                if record.get("title"):
                    asin = record["parent_asin"] if "parent_asin" in record else record["asin"]
                    titles.setdefault(asin, record["title"])
            except _NO_RECORD as error:
                raise UserError(
                    f"{path}, line {number}: not a product's record ({type(error).__name__}); "
                    "fetch the file again or remove it to go on without titles."
                ) from error
    return pd.DataFrame({"title": pd.Series(titles, dtype=object)})
