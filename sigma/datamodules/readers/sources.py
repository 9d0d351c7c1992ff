"""Rows of a file as a query that DuckDB runs, whatever form the file has."""

import ast
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sigma.datamodules.database import LENIENT, identifier, literal
from sigma.datamodules.readers.layout import BLANKS, Layout, unique
from sigma.datamodules.readers.roles import USUAL, plain, usual_column
from sigma.datamodules.readers.text import LONGEST, Text
from sigma.errors import UserError, excerpt

LINE, FAULT = '"#line"', '"#fault"'
"""Columns of each source beside its own: where a row stands, and what is wrong with all of it."""

_NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,17})(\.\d*)?([eE][+-]?\d+)?")
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
        files: of Parquet, all of them.
        numbers: types of columns of text that hold numbers, by the first lines.
        base: of text, the rows that DuckDB makes of its lines, ``columns`` in each.
        above: lines above the first of them.
    """

    path: Path
    query: str
    kinds: Mapping[str, str]
    unit: str = "line"
    text: Text | None = None
    layout: Layout | None = None
    quoted: bool = False
    files: Sequence[Path] = ()
    numbers: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    columns: Sequence[str] = ()
    above: int = 0


def _csv(text: Text, columns: Iterable[str], **options: str | int) -> str:
    """``read_csv`` with nothing left to guess; what is no row is ``LENIENT``'s."""
    kinds = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in columns)
    given: dict[str, str | int] = {
        **{"auto_detect": False, "header": False, "strict_mode": True, "hive_partitioning": False},
        **{"max_line_size": LONGEST, "buffer_size": 4 * LONGEST, "compression": text.compression},
        **options,
    }
    shown = [
        f"{name} = {literal(value) if isinstance(value, str) else value}"
        for name, value in given.items()
    ]
    path = literal(str(text.plain))
    shown.append(LENIENT)
    return f"read_csv({path}, columns = {{{kinds}}}, {', '.join(shown)})"


def whole_lines(text: Text) -> str:
    """Rows of one column ``line``."""
    return _csv(text, ["line"], delim="\x01", quote="", escape="")


def _lines(text: Text) -> str:
    """``LINE`` and ``line``, those that are blank left out."""
    rows = f"(SELECT row_number() OVER () AS {LINE}, line FROM {whole_lines(text)})"
    return f"{rows} WHERE trim(line) <> ''"


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
    signs = {"delim": layout.delimiter, "quote": quote, "escape": quote}
    rows = _csv(text, names, **signs, skip=layout.above)
    query = f"SELECT *, row_number() OVER () AS {LINE}, NULL::VARCHAR AS {FAULT} FROM {rows}"
    kinds = dict.fromkeys(names, "VARCHAR")
    return Source(
        *(text.path, query, kinds, "line", text, layout, quoted),
        base=rows,
        columns=names,
        above=layout.above,
    )


def spaced(text: Text, names: Sequence[str], above: int, of: str) -> Source:
    """Fields with any blanks between and around them."""
    columns = ", ".join(f"f[{k + 1}] AS {identifier(name)}" for k, name in enumerate(names))
    rows = f"(SELECT {LINE}, {_FIELDS} FROM {_lines(text)} AND {LINE} > {above})"
    query = f"SELECT {columns}, {LINE}, {_expected(len(names), of)} AS {FAULT} FROM {rows}"
    kinds = dict.fromkeys(names, "VARCHAR")
    return Source(text.path, query, kinds, text=text, base=whole_lines(text))


def sequences(text: Text) -> Source:
    """``user item item item …`` a line, oldest first."""
    user = "regexp_extract(line, '[^ \\t]+')"
    items = "regexp_matches(line, '[^ \\t][ \\t]+[^ \\t]')"
    turn = f"row_number() OVER (PARTITION BY {user}, {items} ORDER BY {LINE})"
    again = f"SELECT {LINE} FROM {_lines(text)} QUALIFY {turn} > 1"
    fault = (
        "CASE WHEN len(f) < 2 THEN 'expected ''user item item …'', got only ''' || f[1] || '''' "
        f"WHEN {LINE} IN ({again}) "
        "THEN 'user ''' || f[1] || ''' stands on an earlier line, too' END"
    )
    query = (
        f'SELECT f[1] AS "user", f[2:] AS "item", {LINE}, {fault} AS {FAULT} '
        f"FROM (SELECT {LINE}, {_FIELDS} FROM {_lines(text)})"
    )
    kinds = {"user": "VARCHAR", "item": "VARCHAR[]"}
    return Source(text.path, query, kinds, text=text, base=whole_lines(text))


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
    return Source(text.path, query, kinds, text=text, base=whole_lines(text))


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
    return Source(text.path, query, kinds, text=text, base=whole_lines(text))


def json_lines(text: Text, records: Sequence[Mapping[str, Any]]) -> Source:
    """An object a line.

    Args:
        records: the first of them. A list of objects has its fields as columns of lists.
    """
    columns: list[tuple[str, str, str]] = []  # names, types and expressions
    lengths: list[str] = []  # of lists, where there is one
    numbers: dict[str, str] = {}
    for key in dict.fromkeys(key for record in records for key in record if '"' not in key):
        values = [record[key] for record in records if record.get(key) is not None]
        place = literal(f'$."{key}"')
        lists = [value for value in values if isinstance(value, list)]
        if not lists:
            types = {dict: "STRUCT", bool: "BOOLEAN"}
            same = {type(value) for value in values}
            kind = types.get(same.pop(), "VARCHAR") if len(same) == 1 else "VARCHAR"
            columns.append((key, kind, f"json_extract_string(line, {place})"))
            numbers |= number_kind(key, values)
            continue
        objects = [value for each in lists for value in each if isinstance(value, dict)]
        fields = list(dict.fromkeys(name for value in objects for name in value))
        length = f"json_array_length(line, {place})"
        empty = f"json_type(line, {place}) = 'ARRAY'"  # looked at where it is 0, as of a number
        size = f"CASE WHEN {length} > 0 THEN {length} WHEN {empty} THEN 0 END"
        lengths.append(f'{size} AS "#{len(lengths)}"')
        for name in fields or [None]:
            path = literal(f'$."{key}"[*]' + (f'."{name}"' if name else ""))
            found = f"json_extract_string(line, {path})"
            inside = [value.get(name) for value in objects] if name else chain(*lists)
            if name is None or '"' not in name:
                sql = f'CASE WHEN "#{len(lengths) - 1}" = len({found}) THEN {found} END'
                columns.append((name or key, "VARCHAR[]", sql))
                numbers |= number_kind(name or key, inside)
    names = unique([name for name, *_ in columns])
    parts = [
        f"CASE WHEN fine THEN {sql} END AS {identifier(name)}"
        for name, (*_, sql) in zip(names, columns, strict=True)
    ]
    fine = "CASE WHEN json_valid(line) THEN json_type(line) = 'OBJECT' ELSE false END AS fine"
    fault = f"CASE WHEN NOT fine THEN 'not a JSON object' END AS {FAULT}"
    query = (
        f"SELECT {', '.join([*parts, LINE, fault])} "
        f"FROM (SELECT {', '.join([LINE, 'line', fine, *lengths])} FROM {_lines(text)})"
    )
    kinds = {name: kind for name, (_, kind, _) in zip(names, columns, strict=True)}
    return Source(text.path, query, kinds, text=text, numbers=numbers, base=whole_lines(text))


def number_kind(name: str, values: Iterable[object]) -> dict[str, str]:
    """The column's name with the type for its numbers, if it has nothing else.

    Whole ones stay exact; what has zeros in front, or more digits than are safe, is a text.
    """
    texts = [str(value) for value in values if value is not None and value != ""]
    if not texts or not all(map(_NUMBER.fullmatch, texts)):
        return {}
    return {name: "DECIMAL(38, 9)" if all(map(str.isdigit, texts)) else "DOUBLE"}


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
    return replace(text, plain=Path(name))


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


def partitioned(source: Source) -> Source:
    """With columns of text that folders such as ``user_id=7`` tell, where the file has none."""
    pairs = [part.partition("=") for part in source.path.parts[:-1] if "=" in part]
    told = {name: unquote(value) for name, _, value in pairs}
    roles = [usual.split() for usual in USUAL.values() if usual_column(source.kinds, usual)]
    known = {word for words in roles for word in words} | set(map(plain, source.kinds))
    told = {name: value for name, value in told.items() if plain(name) not in known}
    if source.text is None or not told:
        return source
    values = ", ".join(f"{literal(value)} AS {identifier(name)}" for name, value in told.items())
    kinds = {**source.kinds, **dict.fromkeys(told, "VARCHAR")}
    return replace(source, query=f"SELECT *, {values} FROM ({source.query})", kinds=kinds)
