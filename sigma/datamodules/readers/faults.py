"""What is wrong with rows and lines: the first of each kind, and how many there are."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from sigma.datamodules.database import Database, identifier
from sigma.datamodules.readers import times
from sigma.datamodules.readers.layout import broken_row, line_of
from sigma.datamodules.readers.sources import REJECTS, Source, delimited, partitioned
from sigma.datamodules.readers.text import LONGEST
from sigma.datamodules.readers.times import TimeForm
from sigma.datamodules.readers.values import id_value, missing
from sigma.errors import UserError, excerpt

_TEXT = "save the file as UTF-8, or name its encoding with dataset.encoding=, such as latin-1"
_MEND = "mend or remove the line"
_FILL = "fill it in or remove the row"
FORGET = "DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans"


class Fault(NamedTuple):
    """What is wrong with some rows: with the first of them, and how many there are."""

    line: int
    reason: str
    advice: str
    rows: int
    missing: bool = False


class OtherFormError(Exception):
    """Times have fractions, which was not seen at the beginning."""


def stray_quotes(database: Database, source: Source, columns: Mapping[str, str]) -> bool:
    """Whether fewer rows are lost when quotes are taken for what they are.

    Raises:
        UserError: none are lost either way, and the rows are others.
    """
    text, layout = source.text, source.layout
    assert text is not None
    assert layout is not None
    rows, quoted = lines_of(database, source.query)
    over = text.lines - layout.above - rows - quoted  # lines of rows over several, or blank
    if not quoted and over <= 0:
        return False
    parts = [identifier(columns[role]) for role in ("user", "item")]
    odd = " OR ".join(f"contains({part}, '\"')" for part in parts)
    good = database.value(f"SELECT count(*) FROM ({delimited(text, layout, False, 0).query})")
    if text.lines - layout.above - good > REJECTS // 10:
        return False
    bare = f"SELECT * FROM ({partitioned(delimited(text, layout, False)).query})"
    every, rejected = lines_of(database, bare)
    bare_lost = rejected + every - lines_of(database, f"{bare} WHERE ({odd}) IS NOT TRUE")[0]
    texts = ", ".join(map(identifier, source.kinds))
    broken = f"{source.query} WHERE contains(concat_ws('', {texts}), chr(10))"
    if bare_lost == quoted and every > rows and lines_of(database, broken)[0]:
        line = broken_row(text, layout)
        raise UserError(
            f"{source.path}, line {line}: a quoted field goes on below, where each line looks "
            "like a row of its own; take out the quote, or the ends of lines within the field."
        )
    return bare_lost < quoted or (bare_lost == quoted and over > 0)


def lines_of(database: Database, query: str) -> tuple[int, int]:
    """Rows of a query of text, and lines that are none."""
    database.run(FORGET)
    rows = database.value(f"SELECT count(*) FROM ({query})")
    lines = database.value(
        "SELECT coalesce(sum(n), 0)::BIGINT FROM (SELECT any_value(1 + length(line_text) - "
        "length(replace(line_text, chr(10), ''))) AS n FROM (SELECT line, "
        "trim(csv_line, chr(10)) AS line_text FROM reject_errors) GROUP BY line)"
    )
    return rows, lines


def rejected(database: Database, source: Source) -> list[Fault]:
    """Lines that are no rows."""
    if source.text is None:
        return []
    rows = database.value("SELECT count(DISTINCT line) FROM reject_errors")
    if not rows:
        return []
    errors = database.run(
        "SELECT line, error_type::VARCHAR, error_message, csv_line FROM reject_errors "
        "WHERE line = (SELECT min(line) FROM reject_errors)"
    )
    kinds = {kind for _, kind, *_ in errors}
    longest = database.value("SELECT max(length(csv_line)) FROM reject_errors")
    if source.quoted:  # a quote out of place takes lines along, which are lost as well
        read, rows = lines_of(database, source.query)
        if longest >= LONGEST // 8:  # not all of them are shown
            above = source.layout.above if source.layout else 0
            rows = max(rows, source.text.lines - above - read)
    line, _, message, shown = errors[0]
    line = line_number(source, line, shown)
    counts = [re.search(r"Columns: (\d+) Found: (\d+)", text) for _, _, text, _ in errors]
    found = [(int(c[1]), int(c[2])) for c in counts if c]
    if "INVALID ENCODING" in kinds:
        return [Fault(line, "the bytes are not UTF-8 text", _TEXT, rows)]
    if "UNQUOTED VALUE" in kinds:
        reason = "a quote stands out of place"
    elif found and source.layout is not None:
        expected, got = min(found)
        sign = source.layout.sign
        reason = f"expected {expected} fields separated by '{sign}', got {got}"
    else:
        reason = excerpt(message, 80)
    return [Fault(line, reason, _MEND, rows)]


def line_number(source: Source, line: int, shown: str) -> int:
    """The number of a line that DuckDB knows by its rows, of which some go over several."""
    assert source.text is not None
    first = shown.lstrip("\n").split("\n")[0]
    start = re.split("[?\ufffd]", first)[0]
    for number, text in source.text.numbered() if source.quoted else ():
        if number >= line and (
            text.rstrip("\n") == first or (first != start != "" and text.startswith(start))
        ):
            return number
    return line


def row_faults(
    database: Database,
    source: Source,
    rows: str,
    kinds: Mapping[str, str],
    columns: Mapping[str, str],
    form: TimeForm | None,
    joined: str | None,
) -> list[Fault]:
    """What is wrong with rows that have something wrong, by kinds of it."""
    time = form.sql.format("time") if form else "0"
    absent = {role: missing(f'"{role}"', kinds[role]) for role in kinds}
    query = f"""
        SELECT kind, count(*), min(line), arg_min(u, line), arg_min(i, line), arg_min(t, line),
               arg_min(fault, line)
        FROM (SELECT line, fault, "user"::VARCHAR AS u, item::VARCHAR AS i, time::VARCHAR AS t,
              CASE WHEN fault IS NOT NULL THEN 'fault' WHEN {absent["user"]} THEN 'user'
                   WHEN {absent["item"]} THEN 'item' WHEN {absent["time"]} THEN 'timestamp'
                   WHEN {id_value("user", kinds["user"])} IS NULL THEN 'odd user'
                   WHEN {id_value("item", kinds["item"])} IS NULL THEN 'odd item'
                   WHEN {time} IS NULL THEN 'time' WHEN {time} < 0 THEN 'early' END AS kind
              FROM ({rows}))
        WHERE kind IS NOT NULL GROUP BY kind"""
    faults = []
    if form is times.WHOLE:
        other = times.FRACTION.sql.format("time")
        found = database.value(
            f"SELECT count(*) FROM ({rows}) WHERE {time} IS NULL AND {other} IS NOT NULL"
        )
        if found:
            raise OtherFormError
    for kind, number, line, user, item, moment, fault in database.run(query):
        if source.layout is not None and source.text is not None:
            names = list(source.kinds)
            sought = {columns["user"]: user, columns["item"]: item}
            if form is not None and joined is None:
                sought[columns["timestamp"]] = moment
            at = {names.index(name): value for name, value in sought.items()}
            line = line_of(source.text, source.layout, source.quoted, at)
        if kind in columns:
            name = excerpt(columns[kind])
            reason = f"the column '{name}' has no value"
            if kind == "timestamp":
                reason = f"the time in the column '{name}' is missing"
            faults.append(Fault(line, reason, _FILL, number, True))
        elif kind == "fault":
            faults.append(Fault(line, excerpt(fault, 120), _MEND, number))
        elif kind.startswith("odd "):
            role = kind[4:]
            value = user if role == "user" else item
            reason = (
                f"the id {excerpt(value)} in the column '{excerpt(columns[role])}' is "
                f"no text or whole number that the type {excerpt(kinds[role])} holds exactly"
            )
            faults.append(Fault(line, reason, "use whole numbers or text as ids", number))
        else:
            assert form is not None
            what = "is before 1970" if kind == "early" else form.what
            reason = (
                f"the time '{excerpt(moment)}' in the column "
                f"'{excerpt(columns['timestamp'])}' {what}"
            )
            faults.append(Fault(line, reason, times.ADVICE, number))
    return faults
