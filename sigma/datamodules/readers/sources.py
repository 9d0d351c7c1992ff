"""Rows of a file as a query that DuckDB runs, whatever form the file has."""

import ast
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sigma.datamodules.database import Database, identifier
from sigma.datamodules.readers.layout import BLANKS, Layout, unique
from sigma.datamodules.readers.text import LONGEST, Text
from sigma.datamodules.readers.times import text as literal
from sigma.errors import UserError, excerpt

LINE, FAULT = '"#line"', '"#fault"'
"""Columns of each source beside its own: where a row stands, and what is wrong with all of it."""

REJECTS = 1_000_000  # malformed lines that are looked at
_LITERAL = 1 << 20  # signs of a Python literal, whose parsing takes hundreds of times the memory


@dataclass(frozen=True)
class Source:
    """What a file holds.

    Attributes:
        path: of the file, for messages.
        query: of all rows in order, with its columns, ``LINE`` and ``FAULT``.
        kinds: the type of each column; of lists of values it ends in ``[]``.
        unit: what ``LINE`` counts.
        text: the file, if it is one of text.
        layout: of a delimited file, whose ``LINE`` is the number of the row.
        quoted: whether ``"`` wraps fields.
        numbers: columns of text that hold numbers, by the first lines.
        files: of Parquet, all of them.
    """

    path: Path
    query: str
    kinds: Mapping[str, str]
    unit: str = "line"
    text: Text | None = None
    layout: Layout | None = None
    quoted: bool = False
    numbers: Sequence[str] = ()
    files: tuple[Path, ...] = ()


def _csv(text: Text, columns: Iterable[str], **options: Any) -> str:
    """``read_csv`` with nothing left to guess."""
    kinds = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in columns)
    given = {
        **{"auto_detect": False, "header": False, "strict_mode": True, "store_rejects": True},
        **{"rejects_limit": REJECTS, "max_line_size": LONGEST, "buffer_size": 4 * LONGEST},
        **{"compression": text.compression, **options},
    }
    shown = (
        f"{name} = {literal(value) if isinstance(value, str) else value}"
        for name, value in given.items()
    )
    path = literal(str(text.plain))
    return f"read_csv({path}, columns = {{{kinds}}}, {', '.join(shown)})"


def _lines(text: Text) -> str:
    """``LINE`` and ``line``, those that are blank left out."""
    rows = _csv(text, ["line"], delim="\x01", quote="", escape="")
    return f"(SELECT row_number() OVER () AS {LINE}, line FROM {rows}) WHERE trim(line) <> ''"


_FIELDS = "list_filter(string_split(replace(line, chr(9), ' '), ' '), lambda x: x <> '') AS f"


def _expected(count: int, of: str) -> str:
    start = literal(f"expected {of}, got ")
    return f"CASE WHEN len(f) <> {count} THEN {start} || len(f) || ' fields' END"


def delimited(text: Text, layout: Layout, quoted: bool) -> Source:
    """A table in text; ``layout`` has names."""
    assert layout.names is not None
    names = unique(layout.names)
    if layout.delimiter == BLANKS:
        return spaced(text, names, layout.above, f"{len(names)} fields separated by blanks")
    quote = '"' if quoted else ""
    rows = _csv(text, names, delim=layout.delimiter, quote=quote, escape=quote, skip=layout.above)
    query = f"SELECT *, row_number() OVER () AS {LINE}, NULL::VARCHAR AS {FAULT} FROM {rows}"
    kinds = dict.fromkeys(names, "VARCHAR")
    return Source(text.path, query, kinds, "line", text, layout, quoted)


def spaced(text: Text, names: Sequence[str], above: int, of: str) -> Source:
    """Fields with any blanks between and around them."""
    columns = ", ".join(f"f[{k + 1}] AS {identifier(name)}" for k, name in enumerate(names))
    rows = f"(SELECT {LINE}, {_FIELDS} FROM {_lines(text)} AND {LINE} > {above})"
    query = f"SELECT {columns}, {LINE}, {_expected(len(names), of)} AS {FAULT} FROM {rows}"
    return Source(text.path, query, dict.fromkeys(names, "VARCHAR"), text=text)


def sequences(text: Text) -> Source:
    """``user item item item …`` a line, oldest first."""
    turn = f"row_number() OVER (PARTITION BY f[1], len(f) < 2 ORDER BY {LINE}) AS turn"
    rows = f"(SELECT {LINE}, f, {turn} FROM (SELECT {LINE}, {_FIELDS} FROM {_lines(text)}))"
    fault = (
        "CASE WHEN len(f) < 2 THEN 'expected ''user item item …'', got only ''' || f[1] || '''' "
        "WHEN turn > 1 THEN 'user ''' || f[1] || ''' stands on an earlier line, too' END"
    )
    query = (
        f'SELECT f[1] AS "user", f[2:] AS "item", {LINE}, {fault} AS {FAULT} FROM {rows} '
        f"ORDER BY {LINE}"
    )
    return Source(text.path, query, {"user": "VARCHAR", "item": "VARCHAR[]"}, text=text)


def blocks(text: Text) -> Source:
    """The Netflix Prize: a film's number and a colon, below it its ratings ``user,rating,date``."""
    heading = "regexp_matches(line, '^[^,]*:\\s*$')"
    film = f"CASE WHEN {heading} THEN trim(rtrim(trim(line), ':')) END"
    carried = f"last_value({film} IGNORE NULLS) OVER (ORDER BY {LINE} ROWS UNBOUNDED PRECEDING)"
    rows = (
        f"(SELECT {LINE}, string_split(line, ',') AS f, film FROM (SELECT {LINE}, line, {heading} "
        f"AS heading, {carried} AS film FROM {_lines(text)}) WHERE NOT heading ORDER BY {LINE})"
    )
    columns = 'f[1] AS "user", film AS "item", f[2] AS "rating", f[3] AS "date"'
    fault = _expected(3, "3 fields separated by ','")
    query = f"SELECT {columns}, {LINE}, {fault} AS {FAULT} FROM {rows}"
    kinds = dict.fromkeys(("user", "item", "rating", "date"), "VARCHAR")
    return Source(text.path, query, kinds, text=text)


def impressions(text: Text) -> Source:
    """MIND's behaviours: what a user had read before the first line, then what was clicked."""
    rows = f"(SELECT {LINE}, string_split(line, chr(9)) AS f FROM {_lines(text)})"
    first = f"row_number() OVER (PARTITION BY f[2] ORDER BY {LINE}) = 1"
    clicks = (
        "list_transform(list_filter(string_split(trim(f[5]), ' '), lambda x: x LIKE '%-1'), "
        "lambda x: x[:-3])"
    )
    read = "list_filter(string_split(f[4], ' '), lambda x: x <> '')"
    history = f"CASE WHEN {first} THEN {read} ELSE [] END"
    columns = f'f[2] AS "user", {history} || {clicks} AS "item", f[3] AS "time"'
    query = (
        f"SELECT {columns}, {LINE}, {_expected(5, '5 fields separated by tabs')} AS {FAULT} "
        f"FROM {rows} ORDER BY {LINE}"
    )
    kinds = {"user": "VARCHAR", "item": "VARCHAR[]", "time": "VARCHAR"}
    return Source(text.path, query, kinds, text=text)


def json_lines(text: Text, records: Sequence[Mapping[str, Any]]) -> Source:
    """An object a line.

    Args:
        records: the first of them. A list of objects has its fields as columns of lists.
    """
    kinds: dict[str, str] = {}
    columns: list[str] = []
    for key, value in {k: v for record in reversed(records) for k, v in record.items()}.items():
        path = f'$."{key}"'
        listed = isinstance(value, list)
        inner = value[0] if listed and value and isinstance(value[0], dict) else None
        parts = (
            {key: path + "[*]" * listed}
            if inner is None
            else {name: f'{path}[*]."{name}"' for name in inner}
        )
        for name, place in parts.items():
            if '"' in name or name in kinds:
                continue
            kinds[name] = "VARCHAR[]" if listed else "VARCHAR"
            found = f"json_extract_string(line, {literal(place)})"
            columns.append(f"CASE WHEN fine THEN {found} END AS {identifier(name)}")
    fine = "CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END AS fine"
    fault = f"CASE WHEN NOT fine THEN 'not a JSON object' END AS {FAULT}"
    query = (
        f"SELECT {', '.join(columns)}, {LINE}, {fault} "
        f"FROM (SELECT {LINE}, line, {fine} FROM {_lines(text)})"
    )
    return Source(text.path, query, kinds, text=text)


def literal_record(line: str) -> Any:
    """What a Python literal on a line says.

    Raises:
        ValueError: it is none, or a long one.
    """
    if len(line) > _LITERAL:
        raise ValueError("a literal too long")
    try:
        return ast.literal_eval(line)
    except (SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError(str(error)) from error


def without_literals(text: Text, folder: Path) -> Text:
    """The same with JSON in place of Python's literals; lines that are none stay as they are."""
    handle, name = tempfile.mkstemp(suffix=".jsonl", dir=folder)
    with os.fdopen(handle, "w", encoding="utf-8") as copy:
        for _, line in text.numbered():
            try:
                copy.write(json.dumps(literal_record(line), default=str) + "\n")
            except ValueError:
                copy.write(line.rstrip("\n") + "\n")
    return Text(text.path, Path(name), text.head, text.lines, text.quotes)


def records(text: Text, folder: Path) -> Source:
    """JSON or Python's literals, an object a line."""
    records: list[Mapping[str, Any]] = []
    for parse in (json.loads, literal_record):
        records = []
        for _, line in text.head:
            try:
                record = parse(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                records.append(record)
        if records:
            if parse is literal_record:
                text = without_literals(text, folder)
            return json_lines(text, records)
    number, line = text.head[0]
    raise UserError(
        f"{text.path}, line {number}: not a JSON object ({excerpt(line)}); each line must hold one "
        "interaction, or one user with lists of items and times."
    )


def parquet(database: Database, paths: Sequence[Path], path: Path) -> Source:
    """Parquet of one file or several, Hive's folders among them.

    Raises:
        UserError: it is not readable.
    """
    files = ", ".join(literal(str(one)) for one in paths)
    table = f"read_parquet([{files}], hive_partitioning = {len(paths) > 1}, union_by_name = true)"
    try:
        kinds = {name: str(kind) for name, kind, *_ in database.run(f"DESCRIBE FROM {table}")}
    except Exception as error:
        raise UserError(
            f"{path} is not a readable Parquet file ({excerpt(error)}); write or fetch it again."
        ) from error
    query = f"SELECT *, row_number() OVER () AS {LINE}, NULL::VARCHAR AS {FAULT} FROM {table}"
    return Source(path, query, kinds, "row", files=tuple(paths))


def check_pages(paths: Sequence[Path], columns: Sequence[str]) -> None:
    """Read these columns' pages against their checksums, where a file has them.

    Raises:
        UserError: a page is damaged.
    """
    for path in paths:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                known = [name for name in columns if name in file.schema_arrow.names]
                for _ in file.iter_batches(1 << 20, columns=known):
                    pass
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"{path} is not a readable Parquet file ({excerpt(error)}); write or fetch it "
                "again."
            ) from error
