"""Text of whole numbers alone, as most benchmark data come: read in no time, without DuckDB."""

import numpy as np
import pyarrow as pa

from sigma.datamodules.readers.read import Reading
from sigma.datamodules.readers.roles import choose_columns, say_choice
from sigma.datamodules.readers.sources import Source, partitioned

LONGEST = 1 << 24
"""Bytes of text: looking at each digit takes many times as many."""

_DIGITS = b"0123456789"
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
    body = text.content()
    body += b"" if body.endswith(b"\n") else b"\n"
    for _ in range(source.above):
        body = body[body.index(b"\n") + 1 :]
    if source.layout is None and source.kinds == {"user": "VARCHAR", "item": "VARCHAR[]"}:
        return _histories(body)
    fields = _blank_fields(body, source) if source.layout is None else _fields(body, source)
    if fields is None:
        return None
    columns = choose_columns(source.kinds, settings.columns, source.path)
    picked = {role: fields[list(source.kinds).index(name)] for role, name in columns.items()}
    result = {"user": _encoded(picked["user"]), "item": _encoded(picked["item"])}
    if (times := picked.get("timestamp")) is not None:
        if times.min() < _FIRST or times.max() >= 10 * times.min():
            return None
        result["time"] = pa.array(times)
    say_choice(list(source.kinds), columns, None, settings.columns, source.path)
    return pa.table(result)


def _blank_fields(body: bytes, source: Source) -> np.ndarray | None:
    """The columns (width, n) of a table with any number of blanks between fields."""
    values = _numbers(body)
    if values is None or (_lengths(body) != len(source.kinds)).any():
        return None
    return values.reshape(-1, len(source.kinds)).T


def _fields(body: bytes, source: Source) -> np.ndarray | None:
    """The columns (width, n) of a table."""
    layout, width = source.layout, len(source.kinds)
    assert layout is not None
    if width != len(layout.names or ()) or any(name.isdigit() for name in layout.header):
        return None
    delimiter = layout.delimiter.encode()
    if len(delimiter) > 1:
        if b"\t" in body:
            return None
        body, delimiter = body.replace(delimiter, b"\t"), b"\t"
    separators = body.translate(None, _DIGITS)
    line = delimiter * (width - 1) + b"\n"
    if separators != line * (len(separators) // width):
        return None
    lines = body.translate(bytes.maketrans(delimiter, b"\n"))
    if lines.startswith(b"\n") or b"\n\n" in lines:  # a field is empty
        return None
    values = _numbers(lines)
    return None if values is None else values.reshape(-1, width).T


def _histories(body: bytes) -> pa.Table | None:
    """Of a user and items a line."""
    values = _numbers(body)
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
    starts = signs - np.uint8(ord("0")) <= 9  # what is below wraps round
    starts[1:] &= ~starts[:-1]
    ends = np.flatnonzero(signs == ord("\n"))
    lengths = np.diff(np.searchsorted(np.flatnonzero(starts), ends), prepend=0)
    return lengths[lengths > 0]


def _numbers(body: bytes) -> np.ndarray | None:
    """All numbers (n,) int64 of a text that has blanks beside them; None if there is anything else,
    or a number that is not the only way to write it.
    """
    if body.translate(None, _DIGITS + b" \t\n"):
        return None
    ones = b"\n" + body.translate(bytes.maketrans(b"23456789 \t", b"11111111\n\n"))
    if b"\n00" in ones or b"\n01" in ones:
        return None
    if b"1" * 19 in ones.replace(b"0", b"1"):  # too much for an int64, perhaps
        return None
    values: np.ndarray = np.fromstring(body, np.int64, sep=" ")
    return values if len(values) else None


def _encoded(values: np.ndarray) -> pa.DictionaryArray:
    """Ids as text, as they are in a file of text."""
    codes = pa.array(values).dictionary_encode()
    return pa.DictionaryArray.from_arrays(codes.indices, codes.dictionary.cast(pa.string()))
