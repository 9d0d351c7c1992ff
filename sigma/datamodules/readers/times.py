"""Times as people write them, as SQL that makes whole numbers of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sigma.datamodules.database import literal

ADVICE = "use seconds since 1970 or dates such as 2018-10-31 or 2018-10-31 12:00:00"
DATES = ("TIMESTAMP", "DATE")
NUMBERS = (
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER"),
    *("UBIGINT", "FLOAT", "DOUBLE", "DECIMAL"),
)
FORMATS = (
    *("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%Y-%m-%d %H:%M", "%Y.%m.%d"),
    *("%Y.%m.%d %H:%M:%S", "%Y%m%dT%H%M%S", "%Y%m%dT%H%M%SZ", "%Y-%m-%d %H:%M:%S,%f"),
    *("%Y-%m-%d %I:%M:%S %p", "%Y-%m-%d %I:%M %p", "%Y/%m/%d %I:%M:%S %p"),
    *("%a %b %d %H:%M:%S %z %Y", "%a %b %d %H:%M:%S %Y"),  # Twitter's and C's
    *("%a, %d %b %Y %H:%M:%S %z", "%a, %d %b %Y %H:%M:%S %Z"),  # RFC 2822
    *("%d %b %Y %H:%M:%S %z", "%d %b %Y %H:%M:%S", "%d-%b-%Y", "%b %d, %Y"),
    "%d/%b/%Y:%H:%M:%S %z",  # that of web servers
)
"""Forms of dates that are read beside ISO 8601; a month before a day or the other way is not."""

CLOCK = re.compile(r"\s*\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*([AP]M)?\s*", re.IGNORECASE)
"""A time of day."""

DAY = re.compile(
    r"\s*(\d{4}([-/.])\d{1,2}\2\d{1,2}|[12]\d{7}|\d{1,2}([-/.])\d{1,2}\3\d{4})( 00:00:00)?\s*"
)
"""A day alone."""

_MICRO = 1_000_000
_THOUSANDS = re.compile(r"\s*[1-9]\d{0,2}\.\d{3}\s*")


def _moment(column: str) -> str:
    formats = ", ".join(map(literal, FORMATS))
    return (
        f"coalesce(TRY_CAST({column} AS TIMESTAMPTZ), "
        f"try_strptime(trim({column}), [{formats}])::TIMESTAMPTZ)"
    )


@dataclass(frozen=True)
class TimeForm:
    """How the times of a file are written.

    Attributes:
        what: of a time that is not so, as a message has it.
        sql: of the time, ``{}`` for the column; NULL where it is not so.
        second: how many of its units a second has; 0 where the file decides.
    """

    what: str
    sql: str
    second: int


WHOLE = TimeForm(
    "is not a number like the rest",
    # Not rounded: a time with a fraction is none of these.
    "CASE WHEN TRY_CAST({0} AS DOUBLE) = TRY_CAST({0} AS BIGINT) THEN TRY_CAST({0} AS BIGINT) END",
    0,
)
FRACTION = TimeForm(
    WHOLE.what, f"TRY_CAST(round(TRY_CAST({{0}} AS DOUBLE) * {_MICRO}) AS BIGINT)", _MICRO
)
# To some 999 and 1.000 are a thousand and one less.
POINTED = TimeForm(
    "has a point, that of a fraction or one between thousands",
    "CASE WHEN NOT contains({0}, '.') THEN TRY_CAST({0} AS BIGINT) END",
    0,
)
DATE = TimeForm("is not a date like the rest", f"epoch_us({_moment('{0}')})", _MICRO)
MOMENT = TimeForm(DATE.what, "epoch_us({0}::TIMESTAMPTZ)", _MICRO)  # of a column of that type
NANOSECONDS = TimeForm(DATE.what, "epoch_ns(TRY_CAST({0} AS TIMESTAMP_NS))", 10**9)


def own(time_format: str) -> TimeForm:
    """The form that ``dataset.time_format`` gives."""
    sql = f"epoch_us(try_strptime(trim({{0}}), {literal(time_format)})::TIMESTAMPTZ)"
    return TimeForm(f"does not fit dataset.time_format={time_format}", sql, _MICRO)


def neither(form: TimeForm) -> TimeForm:
    """The form of times that have none."""
    what = (
        "is neither a number nor an ISO date (say how it is written with "
        "'dataset.time_format=\"%d.%m.%Y %H:%M\"')"
    )
    return replace(form, what=what) if form is WHOLE else form


def forms(kind: str, time_format: str | None, sample: Sequence[str]) -> tuple[TimeForm, ...]:
    """The forms that times of this type may have, the narrowest first; none for another type.

    Args:
        kind: the type of the column.
        sample: some of its values as text.
    """
    if kind == "VARCHAR":
        if time_format is not None:
            return (own(time_format),)
        fine = any(re.search(r"\.\d{7}", value) for value in sample)
        dotted = [value for value in sample if "." in value]
        if 0 < len(dotted) < len(sample) and all(map(_THOUSANDS.fullmatch, dotted)):
            return (POINTED,)
        return WHOLE, FRACTION, *((NANOSECONDS,) if fine else ()), DATE
    if kind in ("TIMESTAMP_NS", "TIMESTAMPTZ_NS"):
        return (NANOSECONDS,)
    if kind.startswith(DATES):
        return (MOMENT,)
    if kind in NUMBERS or kind.startswith("DECIMAL"):
        return WHOLE, FRACTION
    return ()


def clock_digits(values: Sequence[str]) -> int:
    """How many digits times of day such as 905 or 93000 have, 4 or 6; 0 where they are none."""
    if not all(value.strip().isdigit() for value in values):
        return 0
    numbers = [int(value) for value in values]
    for digits in (4, 6):
        hours = 24 * 10 ** (digits - 2)
        if all(n < hours and n % 100 < 60 and n // 100 % 100 < 60 for n in numbers):
            return digits
    return 0


def joined_clock(date: str, clock: str, digits: int = 4) -> str:
    """A date, as text or a number such as 20240110, and a time of day (9:05, 905), as one text."""
    numbered = "'^(\\d{4})(\\d{2})(\\d{2})$', '\\1-\\2-\\3'"
    day = f"regexp_replace(replace(trim({date}::VARCHAR), ' 00:00:00', ''), {numbered})"
    text = f"trim({clock}::VARCHAR)"
    padded = f"lpad({text}, {digits}, '0')"
    parts = " || ':' || ".join(f"{padded}[{k}:{k + 1}]" for k in range(1, digits, 2))
    return f"({day} || ' ' || CASE WHEN contains({text}, ':') THEN {text} ELSE {parts} END)"


def later(date: str, milliseconds: str) -> str:
    """A date and milliseconds from its beginning, as one text."""
    moment = f"{date}::VARCHAR::TIMESTAMP + to_milliseconds({milliseconds}::BIGINT)"
    return f"coalesce(TRY({moment})::VARCHAR, {date}::VARCHAR)"
