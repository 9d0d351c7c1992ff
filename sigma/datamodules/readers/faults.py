"""What is wrong with rows and lines: the first of each kind, and how many there are."""

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import duckdb

from sigma.datamodules.database import Database, identifier
from sigma.datamodules.readers import times
from sigma.datamodules.readers.layout import broken_row, line_of
from sigma.datamodules.readers.sources import Source, delimited, partitioned, whole_lines
from sigma.datamodules.readers.times import TimeForm
from sigma.datamodules.readers.values import id_value, missing
from sigma.errors import UserError, excerpt

_TEXT = "save the file as UTF-8, or name its encoding with dataset.encoding=, such as latin-1"
_MEND = "mend or remove the line"
_FILL = "fill it in or remove the row"


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
    """Whether fewer lines are lost when quotes are taken for what they are.

    Raises:
        UserError: none are lost either way, and the rows are others.
    """
    text, layout = source.text, source.layout
    assert text is not None
    assert layout is not None
    with database.lenient(text.small):
        rows = database.value(f"SELECT count(*) FROM {source.base}")
        if rows == text.lines - source.above:
            return False
        lines, lost = lines_of(database, source)
        if not lost and lines == rows:
            return False
        bare = partitioned(delimited(text, layout, False))
        parts = [identifier(columns[role]) for role in ("user", "item")]
        odd = " OR ".join(f"contains({part}, '\"')" for part in parts)
        every, good = database.run(
            f"SELECT count(*), count(*) FILTER (({odd}) IS NOT TRUE) FROM ({bare.query})"
        )[0]
        bare_lost = sum(lines_of(database, bare)) - good
        if bare_lost == lost and every > rows and lines > rows:
            raise UserError(
                f"{source.path}, line {broken_row(text, layout)}: a quoted field goes on below, "
                "where each line looks like a row of its own; take out the quote, or the ends of "
                "lines within the field."
            )
    return bare_lost < lost or (bare_lost == lost and lines > rows)


def lines_of(database: Database, source: Source, read: Collection[str] = ()) -> tuple[int, int]:
    """Lines of rows of a text, blank ones within fields left out, and lines that are no rows.

    Args:
        read: columns whose bytes are to be text.
    """
    assert source.text is not None
    counts = ", ".join(["count(*)", *(f"count({identifier(name)})" for name in read)])
    with database.lenient(source.text.small):
        lines = database.run(f"SELECT {counts} FROM {source.base}")[0][0]
        if source.quoted:
            names = [f"coalesce({identifier(name)}, '')" for name in source.columns]
            ends = " + ".join(f"length({f}) - length(replace({f}, chr(10), ''))" for f in names)
            inner = (f"string_split({f}, chr(10))[2:-2]" for f in names)
            empty = "lambda x: x IN ('', chr(13))"
            blank = " + ".join(f"len(list_filter({part}, {empty}))" for part in inner)
            more = f"SELECT coalesce(sum({ends} - ({blank})), 0)::BIGINT FROM"
            try:  # fields that nobody reads may hold any bytes, of which DuckDB's Latin-1 has most
                lines += database.value(f"{more} {source.base[:-1]}, encoding = 'latin-1')")
            except duckdb.InvalidInputException:
                lines += database.value(f"{more} {source.base}")
        all_lines = source.text.lines - source.above
        if source.columns:  # a blank line is none of its rows
            all_lines -= database.value(
                f"SELECT count(*) FROM (SELECT line, row_number() OVER () AS n FROM "
                f"{whole_lines(source.text)}) WHERE coalesce(line, '') = '' AND n > {source.above}"
            )
    return lines, max(all_lines - lines, 0)


def first_fault(database: Database, source: Source, read: Collection[str]) -> Fault | None:
    """The first line of a text that is no row, if there is one; how many are not counted.

    Args:
        read: columns whose bytes are to be text.
    """
    if source.text is None:
        return None
    counts = ", ".join(f"count({identifier(name)})" for name in read or ("line",))
    try:
        with database.one_thread():  # which meets the first one first
            database.run(f"SELECT {counts} FROM {source.base}")
        return None
    except duckdb.Error as error:
        message = str(error)
    match = re.search(r"CSV Error on Line: (\d+)\n(?:Original Line: \n*([^\n]*))?", message)
    if match is None:
        return None
    said = message[match.end() :].partition("\nPossible ")[0]
    line = line_number(source, int(match[1]), (match[2] or "").replace("\\0", "\0"))
    if "Invalid unicode" in said:
        return Fault(line, "the bytes are not UTF-8 text", _TEXT, 0)
    fields = re.findall(r"Expected Number of Columns: (\d+) Found: (\d+)", said)
    if "unterminated quote" in said:
        reason = "a quote stands out of place"
    elif fields and source.layout is not None:
        expected, got = fields[-1]
        sign = source.layout.sign
        reason = f"expected {expected} fields separated by '{sign}', got {got}"
    else:
        reason = excerpt(said.strip().rpartition("\n")[2], 80)
    return Fault(line, reason, _MEND, 0)


def line_number(source: Source, line: int, shown: str) -> int:
    """The number of a line that DuckDB knows by its rows, of which some go over several."""
    assert source.text is not None
    start = re.split("[?\ufffd]", shown)[0]
    for number, text in source.text.numbered() if source.quoted else ():
        if number >= line and (
            text.rstrip("\n") == shown or (shown != start != "" and text.startswith(start))
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
