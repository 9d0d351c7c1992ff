"""Columns gathered block by block: raw ids -> int32 codes, raw times -> int64.

A block is one Arrow array, so a file of any size is read with the memory of its codes alone.
"""

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sigma.errors import UserError, excerpt

Where = Callable[[int], str]
"""Row number (from 0) -> the file and where in it, for messages."""

TIME_ADVICE = "use seconds since 1970 or dates such as 2018-10-31 or 2018-10-31 12:00:00"
_MICRO = 1_000_000


class BadRowError(UserError):
    """What is wrong is one row, which text files can do without."""


class IdColumn:
    """Codes by first appearance, for ids of any type.

    Args:
        name: of the column, for messages.
        where: row -> place, for messages.
    """

    def __init__(self, name: str, where: Where) -> None:
        self._name, self._where = excerpt(name), where
        self._blocks: list[pa.Array] = []
        self._rows = 0

    def add(self, values: pa.Array) -> None:
        """Append one block.

        Raises:
            UserError: a value is missing, or an id that is a number is not a whole one.
        """
        if pa.types.is_dictionary(values.type):  # a category's order is not that of the file
            values = values.dictionary_decode()
        if pa.types.is_floating(values.type):  # what pandas makes of whole numbers with a gap
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        if values.null_count:
            row = self._rows + pc.index(pc.is_null(values), True).as_py()
            raise BadRowError(
                f"{self._where(row)}: the column '{self._name}' has no value; "
                "fill it in or remove the row."
            )
        if pa.types.is_floating(values.type):
            whole = pc.equal(pc.floor(values), values)
            if not pc.all(whole, min_count=0).as_py():
                row = pc.index(whole, False).as_py()
                raise UserError(
                    f"{self._where(self._rows + row)}: the id {values[row]} in the column "
                    f"'{self._name}' is not a whole number; use whole numbers or text as ids."
                )
            try:
                values = values.cast(pa.int64())
            except pa.ArrowInvalid as error:
                raise UserError(
                    f"{self._where(self._rows)}: the column '{self._name}' holds ids too large for "
                    "numbers; store them as text."
                ) from error
        if not (pa.types.is_integer(values.type) or pa.types.is_string(values.type)):
            try:
                values = values.cast(pa.string())
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise UserError(
                    f"{self._where(self._rows)}: the column '{self._name}' is of type "
                    f"{excerpt(values.type)}; use whole numbers or text as ids."
                ) from error
        self._rows += len(values)
        self._blocks.append(values.dictionary_encode())

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """``(codes (n,) int32, raw ids)``; the column is empty afterwards."""
        if not self._blocks:
            return np.empty(0, np.int32), np.empty(0, object)
        column = pa.chunked_array(self._blocks).unify_dictionaries()
        self._blocks = []
        ids = column.chunk(0).dictionary.to_numpy(zero_copy_only=False)
        codes = np.empty(self._rows, np.int32)
        start = 0
        for block in column.chunks:
            codes[start : start + len(block)] = block.indices.to_numpy(zero_copy_only=False)
            start += len(block)
        return codes, ids


class TimeColumn:
    """Times as int64, in the unit of the file.

    Whole numbers stay as they are (``881250949.0`` is whole). Dates become seconds since 1970
    (UTC where no zone is given). If any time of the file has a fraction of a second, all of them
    become microseconds, rounded, so that the order is kept.
    """

    def __init__(self, name: str, where: Where) -> None:
        self._name, self._where = excerpt(name), where
        self._blocks: list[tuple[np.ndarray, bool]] = []  # values, in microseconds?
        self._rows = 0
        self._dates: bool | None = None

    def add(self, values: pa.Array) -> None:
        """Append one block.

        Raises:
            UserError: a time is missing, negative, not readable, or of another kind than before.
        """
        if len(values) == 0:
            return
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        if values.null_count:
            row = pc.index(pc.is_null(values), True).as_py()
            raise self._error(row, "is missing")
        is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        is_date = pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)
        is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
        if not (is_text or is_date or is_number):
            raise self._error(0, f"is of type {values.type}")
        dates = is_date or (is_text and _numbers(values[:1]) is None)
        read = _dates(values) if dates else _numbers(values)
        if read is None:
            row, what = next(bad_times(values, dates))
            raise self._error(row, what, values)
        if self._dates not in (None, dates):
            raise self._error(0, "mixes dates with numbers", values)
        self._dates = dates
        block, micro = read
        if block.min() < 0:
            raise self._error(int(np.argmax(block < 0)), "is before 1970", values)
        self._blocks.append((block, micro))
        self._rows += len(block)

    def finish(self) -> np.ndarray:
        """Times (n,) int64; the column is empty afterwards."""
        times = np.empty(self._rows, np.int64)
        micro = any(unit for _, unit in self._blocks)
        start = 0
        for block, unit in self._blocks:
            times[start : start + len(block)] = block if unit or not micro else block * _MICRO
            start += len(block)
        self._blocks = []
        if micro and not np.any(times % _MICRO):
            times //= _MICRO
        return times

    def _error(self, row: int, what: str, values: pa.Array | None = None) -> BadRowError:
        shown = "" if values is None else f" '{excerpt(values[row])}'"
        return BadRowError(
            f"{self._where(self._rows + row)}: the time{shown} in the column '{self._name}' "
            f"{what}; {TIME_ADVICE}."
        )


def bad_times(values: pa.Array, dates: bool, start: int = 0) -> Iterator[tuple[int, str]]:
    """``(row, what is wrong)`` of each value that is no time of this kind, found by halving."""
    read = _dates(values) if dates else _numbers(values)
    if read is not None:
        yield from ((start + int(row), "is before 1970") for row in np.flatnonzero(read[0] < 0))
    elif len(values) == 1:
        yield start, f"is not a {'date' if dates else 'number'} like the rest"
    else:
        half = len(values) // 2
        yield from bad_times(values[:half], dates, start)
        yield from bad_times(values[half:], dates, start + half)


def _numbers(values: pa.Array) -> tuple[np.ndarray, bool] | None:
    """``(int64, in microseconds?)``, or None when a value is not a finite number in range."""
    try:
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            values = pc.utf8_trim_whitespace(values)
        if not pa.types.is_floating(values.type):
            return values.cast(pa.int64()).to_numpy(zero_copy_only=False), False
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    try:
        floats = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if not np.all(np.isfinite(floats)) or np.abs(floats).max(initial=0) >= 2**63 / _MICRO:
        whole = np.all(np.isfinite(floats)) and np.abs(floats).max(initial=0) < 2**63
        return (floats.astype(np.int64), False) if whole else None
    if np.all(floats == np.floor(floats)):
        return floats.astype(np.int64), False
    return np.rint(floats * _MICRO).astype(np.int64), True


def _dates(values: pa.Array) -> tuple[np.ndarray, bool] | None:
    """``(int64 microseconds, True)`` of dates or ISO text, or None when one is not a date."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = pc.utf8_trim_whitespace(values)
    attempts: tuple[Any, ...] = (pa.timestamp("us"), pa.timestamp("us", "UTC"))
    for kind in attempts:
        try:
            moments = pc.cast(values, kind, safe=False)
            return moments.cast(pa.int64()).to_numpy(zero_copy_only=False), True
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    try:  # a mixture of ISO forms that Arrow does not take at once
        parsed = [datetime.datetime.fromisoformat(str(text)) for text in values]
    except ValueError:
        return None
    zone = datetime.UTC
    moments = [p if p.tzinfo else p.replace(tzinfo=zone) for p in parsed]
    epoch = datetime.datetime(1970, 1, 1, tzinfo=zone)
    step = datetime.timedelta(microseconds=1)
    return np.array([(m - epoch) // step for m in moments], dtype=np.int64), True
