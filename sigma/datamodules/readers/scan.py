"""Line by line through a file that could not be read at once: which lines are malformed, and why.

Slow, and only for a file with a fault. It judges as ``IdColumn``, ``TimeColumn`` and Arrow do.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from sigma.datamodules.readers.columns import TIME_ADVICE, bad_times
from sigma.datamodules.readers.lines import Lines
from sigma.datamodules.readers.malformed import LeftOut
from sigma.errors import excerpt

MISSING = ["", "nan", "NaN", "null", "NULL"]
"""Text that stands for no value in delimited files."""

_BLOCK = 1 << 16  # rows whose times are judged at once
_TIME = 100  # signs of a time; a block holds those of all its rows
_MEND = "mend or remove the line"
_UTF8 = "the bytes are not UTF-8 text", "save the file as UTF-8"


class Row(NamedTuple):
    """One row: its lines, and either its time (None: the file has none) or what is wrong."""

    first: int
    last: int
    time: str | int | None = None
    reason: str = ""
    advice: str = ""


def delimited_rows(
    text: Lines, names: Sequence[str] | None, user: str, item: str, timestamp: str | None
) -> Iterator[Row]:
    """Judge each row of delimited text but for its time; arguments as in ``read_delimited``."""
    rows = text.rows(len(names) if names else None)
    if names is None:
        names = next(rows, (0, 0, []))[2]
    sign = "::" if text.double else {"\t": "tab"}.get(text.delimiter, text.delimiter)
    columns = [name for name in (user, item, timestamp) if name is not None]
    if not set(columns) <= set(names):
        return  # the header is what is wrong
    wanted = [(name, names.index(name)) for name in columns]
    for first, last, fields in rows:
        if len(fields) != len(names):
            got = len(fields) - text.headed or "a quote or a line end out of place"
            expected = len(names) - text.headed
            reason = f"expected {expected} fields separated by '{sign}', got {got}"
            # A file in another encoding may have no line in its place; the cause comes first.
            yield Row(first, last, None, *((reason, _MEND) if _utf8(*fields) else _UTF8))
            continue
        values = {name: fields[at] for name, at in wanted}
        if first in text.unquoted and '"' in "".join(values.values()):
            text.unquoted.discard(first)  # a value may have been cut off
            reason = "a quote stands out of place in " + " ".join(
                f"the column '{excerpt(name)}'" for name, value in values.items() if '"' in value
            )
            yield Row(first, last, None, reason, _MEND)
            continue
        empty = next((name for name, value in values.items() if value in MISSING), None)
        if not _utf8(*values.values()):
            yield Row(first, last, None, *_UTF8)
        elif empty is not None and empty == timestamp:
            reason = f"the time in the column '{excerpt(empty)}' is missing"
            yield Row(first, last, None, reason, TIME_ADVICE)
        elif empty is not None:
            reason = f"the column '{excerpt(empty)}' has no value"
            yield Row(first, last, None, reason, "fill it in or remove the row")
        else:
            yield Row(first, last, None if timestamp is None else values[timestamp][:_TIME])


def json_rows(text: Lines, schema: pa.Schema) -> Iterator[Row]:
    """Judge each line of JSON but for its time, the last field of ``schema``."""
    for first, last, (line,) in text.rows():
        yield Row(first, last, *_json_row(line, schema))


def _json_row(line: str, schema: pa.Schema) -> tuple[str | int | None, str, str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"not a JSON object ({excerpt(error)})"
        return None, *((reason, _MEND) if _utf8(line) else _UTF8)
    if not isinstance(record, dict):
        return None, f"not a JSON object ({excerpt(json.dumps(record))})", _MEND
    for field in schema:
        value = record.get(field.name)
        kind = str if pa.types.is_string(field.type) else int
        if value is None:
            return None, f"the column '{field.name}' has no value", "fill it in or remove the row"
        if type(value) is not kind or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            wanted = "text" if kind is str else "a whole number"
            shown = excerpt(json.dumps(value))
            return None, f"the field '{field.name}' should be {wanted}, got {shown}", _MEND
        if isinstance(value, str) and not _utf8(value):
            return None, *_UTF8
    return value[:_TIME] if isinstance(value, str) else value, "", ""


def scan(rows: Iterator[Row], time_name: str | None, left_out: LeftOut) -> int:
    """Note all malformed rows in ``left_out``, in the order of the file; the others' number.

    Raises:
        UserError: see ``LeftOut.add``.
    """
    dates: bool | None = None
    neither = False
    good = 0
    while block := list(islice(rows, _BLOCK)):
        found = [row for row in block if row.reason]
        timed = [row for row in block if not row.reason and row.time is not None]
        if timed:
            values = pa.array([row.time for row in timed])
            if dates is None:  # the first time alone may be the malformed one
                sample = values[:1000]
                bad = {kind: [row for row, _ in bad_times(sample, kind)] for kind in (False, True)}
                # On a tie, the kind that the file begins with.
                dates = min(bad, key=lambda kind: (len(bad[kind]), [-row for row in bad[kind]]))
                neither = all(len(rows) == len(sample) > 1 for rows in bad.values())
            for at, what in bad_times(values, dates):
                what = "is neither a number nor an ISO date" if neither else what
                time, name = excerpt(timed[at].time), excerpt(time_name)
                reason = f"the time '{time}' in the column '{name}' {what}"
                found.append(timed[at]._replace(reason=reason, advice=TIME_ADVICE))
        for row in sorted(found, key=lambda row: row.first):
            left_out.add(row.first, row.last, row.reason, row.advice)
        good += len(block) - len(found)
    return good


def _utf8(*values: str) -> bool:
    try:
        "".join(values).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
