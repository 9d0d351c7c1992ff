"""How the times of a file are written, told from its first ones."""

import logging
from collections.abc import Mapping

import duckdb

from sigma.datamodules.database import Database, identifier
from sigma.datamodules.readers import times
from sigma.datamodules.readers.roles import plain
from sigma.datamodules.readers.sources import Source
from sigma.datamodules.readers.times import CLOCK, TimeForm
from sigma.datamodules.readers.values import missing
from sigma.errors import UserError, excerpt

_DAY = 86_400_000  # milliseconds
_CLOCKS = "time eventtime hourmin hhmm hhmmss timeofday"

log = logging.getLogger(__name__)


def check_format(database: Database, time_format: str) -> None:
    """Refuse a ``dataset.time_format`` that DuckDB does not know.

    Raises:
        UserError: it is none.
    """
    try:
        database.run("SELECT try_strptime('', $format)", format=time_format)
    except duckdb.Error as error:
        raise UserError(
            f"dataset.time_format={excerpt(time_format)} has a sign that stands for nothing; write "
            "it like 'dataset.time_format=\"%d.%m.%Y %H:%M\"'."
        ) from error


def clocked(
    database: Database, source: Source, columns: Mapping[str, str], named: bool
) -> tuple[str, str, str | None]:
    """The expression of times, of a date and a time of day where they stand apart.

    Args:
        named: whether the user has named the column of times.

    Returns:
        It, its type, and the column that was joined.

    Raises:
        UserError: times of day without a date.
    """
    column = columns["timestamp"]
    name, by_name = identifier(column), {plain(other): other for other in source.kinds}

    def sample(other: str) -> list[str]:
        rows = f"SELECT {identifier(other)} AS time FROM ({source.query})"
        return _sample(database, rows, source.kinds[other])

    def beside(names: str) -> list[str]:
        others = (by_name[word] for word in names.split() if word in by_name)
        return [o for o in others if o not in columns.values() and "[" not in source.kinds[o]]

    values = sample(column)
    clock = bool(values) and all(map(CLOCK.fullmatch, values))
    small = plain(column) in _CLOCKS.split() and all(v.isdigit() and int(v) < _DAY for v in values)
    if values and (clock or small):
        for date in beside("date day eventdate"):
            if all(map(times.DAY.fullmatch, sample(date))):
                digits = 4 if clock else times.clock_digits(values)
                if digits:
                    joined = times.joined_clock(identifier(date), name, digits)
                    return joined, "VARCHAR", date
                clock = not named
    if clock:
        raise UserError(
            f"{source.path}: the column '{excerpt(column)}' holds times of day without a date "
            f"(such as {excerpt(values[0])}); name the column of whole times with "
            "dataset.columns.timestamp=."
        )
    if values and all(map(times.DAY.fullmatch, values)):
        for other in beside(_CLOCKS):
            hours = sample(other)
            digits = 4 if all(map(CLOCK.fullmatch, hours)) else times.clock_digits(hours)
            if digits:
                return times.joined_clock(name, identifier(other), digits), "VARCHAR", other
        if hour := beside("hour"):
            parts = [*hour, *beside("minute"), *beside("second")]
            padded = [f"lpad({identifier(part)}::VARCHAR, 2, '0')" for part in parts]
            text = " || ':' || ".join([*padded, "'00'"][: max(len(padded), 2)])
            return times.joined_clock(name, f"({text})"), "VARCHAR", hour[0]
        for offset in beside("timeframe"):  # DIGINETICA's
            return times.later(name, identifier(offset)), "VARCHAR", offset
    return name, source.kinds[column], None


def form_of(
    database: Database, source: Source, rows: str, kind: str, column: str, time_format: str | None
) -> TimeForm | None:
    """The form that most of the first times have; None where there are none.

    Args:
        rows: a query of them, as ``time`` of the type ``kind``.
        column: their name, for messages.

    Raises:
        UserError: they are of a type that tells no time.
    """
    sample = _sample(database, rows, kind)
    forms = times.forms(kind, time_format, sample)
    if not forms:
        raise UserError(
            f"{source.path}: the time in the column '{excerpt(column)}' is of type "
            f"{excerpt(kind)}; {times.ADVICE}."
        )
    if kind != "VARCHAR" or len(forms) == 1:
        return forms[0]
    if not sample:
        return None
    good = ", ".join(f"count({form.sql.format('x')})" for form in forms)
    (counts,) = database.run(f"SELECT {good} FROM (SELECT unnest($x) AS x)", x=sample)
    (first,) = database.run(f"SELECT {good} FROM (SELECT unnest($x) AS x)", x=sample[:1])
    if not any(counts):
        return times.neither(forms[0])
    # Where two have as many, that of the file's beginning.
    best = max(range(len(forms)), key=lambda k: (counts[k], first[k], -k))
    return forms[0] if forms[best] is times.FRACTION and counts[0] else forms[best]


def _sample(database: Database, rows: str, kind: str) -> list[str]:
    """Some times as text."""
    query = f"SELECT time::VARCHAR FROM ({rows}) WHERE NOT {missing('time', kind)} LIMIT 1000"
    return [value for (value,) in database.run(query)]


def warn_of_units(database: Database, second: int) -> None:
    """Tell of times of which some count seconds, and others parts of it."""
    low, high = database.run("SELECT min(time), max(time) FROM raw")[0]
    if low is None or high < 10 * low:
        return
    powers = {"seconds": 0, "milliseconds": 3, "microseconds": 6, "nanoseconds": 9}
    places = (
        f"time BETWEEN 1e{8 + p} * {second} AND 2e{10 + p} * {second}" for p in powers.values()
    )
    counts = database.run(
        f"SELECT {', '.join(f'count(*) FILTER ({place})' for place in places)} FROM raw"
    )[0]
    units = [f"{n:,} look like {unit}" for unit, n in zip(powers, counts, strict=True) if n]
    if len(units) > 1:
        log.warning(
            "The times are of several units, %s; their order is not that of time: write them "
            "in one.",
            " and ".join(units),
        )
