"""Text of whole numbers alone, as most benchmark data come: read in no time, without DuckDB."""

import numpy as np
import pyarrow as pa

from sigma.datamodules.readers.read import Reading
from sigma.datamodules.readers.roles import choose_columns, say_choice
from sigma.datamodules.readers.sources import Source, partitioned
from sigma.datamodules.readers.text import open_raw, readable

LONGEST = 1 << 24
"""Bytes of text: looking at each digit takes many times as many."""

_DIGITS = 18  # of a number that is surely an int64
_FIRST = 10**8  # no time of day, no date written as a number


def whole_numbers(source: Source, settings: Reading) -> pa.Table | None:
    """Users and items, encoded, and ``time`` if there are times; None where anything calls for a
    closer look: a sign that is no digit, an empty field, a zero in front, a doubtful time.

    Raises:
        UserError: columns that are not there.
    """
    source, text = partitioned(source), source.text
    if text is None or text.size > LONGEST or text.quotes:
        return None
    if settings.where is not None or settings.time_format is not None:
        return None
    with readable(text.path), open_raw(text.plain) as stream:
        body = stream.read().replace(b"\r\n", b"\n")
    body += b"" if body.endswith(b"\n") else b"\n"
    for _ in range(source.above):
        body = body[body.index(b"\n") + 1 :]
    if source.layout is None and source.kinds == {"user": "VARCHAR", "item": "VARCHAR[]"}:
        return _histories(body)
    rows = _rows(body, source)
    if rows is None:
        return None
    columns = choose_columns(source.kinds, settings.columns, source.path)
    picked = {role: rows[:, list(source.kinds).index(name)] for role, name in columns.items()}
    result = {"user": _encoded(picked["user"]), "item": _encoded(picked["item"])}
    if (times := picked.get("timestamp")) is not None:
        if times.min() < _FIRST or times.max() >= 10 * times.min():
            return None
        result["time"] = pa.array(times)
    say_choice(list(source.kinds), columns, None, settings.columns, source.path)
    return pa.table(result)


def _rows(body: bytes, source: Source) -> np.ndarray | None:
    """The fields (n, columns) of a table."""
    layout, width = source.layout, len(source.kinds)
    if layout is None:  # blanks, any number of them
        values = _numbers(body, b" \t")
        if values is None or (_lengths(body) != width).any():
            return None
        return values.reshape(-1, width)
    if width != len(layout.names or ()) or any(name.isdigit() for name in layout.header):
        return None
    delimiter = layout.delimiter.encode()
    if len(delimiter) > 1:
        if b"\t" in body:
            return None
        body, delimiter = body.replace(delimiter, b"\t"), b"\t"
    values, signs = _numbers(body, delimiter), np.frombuffer(body, np.uint8)
    separators = signs[~_is_digit(signs)]
    if values is None or len(values) != len(separators) or len(values) % width:
        return None
    ends = separators.reshape(-1, width) == ord("\n")
    return None if ends[:, :-1].any() or not ends[:, -1].all() else values.reshape(-1, width)


def _histories(body: bytes) -> pa.Table | None:
    """Of a user and items a line."""
    values = _numbers(body, b" \t")
    if values is None:
        return None
    lengths = _lengths(body)
    first = np.cumsum(lengths) - lengths
    users = _encoded(values[first])
    if lengths.min() < 2 or len(users.dictionary) < len(users):
        return None
    rest = np.ones(len(values), bool)
    rest[first] = False
    repeated = users.take(pa.array(np.arange(len(users)).repeat(lengths - 1)))
    return pa.table({"user": repeated, "item": _encoded(values[rest])})


def _lengths(body: bytes) -> np.ndarray:
    """How many numbers each line has that has any."""
    signs = np.frombuffer(body, np.uint8)
    digit = _is_digit(signs)
    starts = np.flatnonzero(digit & ~np.concatenate([[False], digit[:-1]]))
    lengths = np.diff(np.searchsorted(starts, np.flatnonzero(signs == ord("\n"))), prepend=0)
    return lengths[lengths > 0]


def _is_digit(signs: np.ndarray) -> np.ndarray:
    return signs - np.uint8(ord("0")) <= 9  # what is below wraps round


def _numbers(body: bytes, delimiters: bytes) -> np.ndarray | None:
    """All numbers (n,) int64 of a text of them; None if there is anything else, or a number that is
    not the only way to write it."""
    if body.translate(None, b"0123456789\n" + delimiters):
        return None
    signs = np.frombuffer(body, np.uint8)
    edges = np.flatnonzero(np.diff(_is_digit(signs), prepend=False))
    starts, ends = edges[::2], edges[1::2]
    lengths = ends - starts
    if not len(starts) or lengths.max() > _DIGITS or (lengths[signs[starts] == ord("0")] > 1).any():
        return None
    values = np.zeros(len(starts), np.int64)
    for place in range(lengths.max()):
        some = np.flatnonzero(lengths > place)
        values[some] *= 10
        values[some] += signs[starts[some] + place] - np.uint8(ord("0"))
    return values


def _encoded(values: np.ndarray) -> pa.DictionaryArray:
    """Ids as text, as they are in a file of text."""
    codes = pa.array(values).dictionary_encode()
    return pa.DictionaryArray.from_arrays(codes.indices, codes.dictionary.cast(pa.string()))
