"""Tables: a user's own CSV, TSV or Parquet, and RecBole's atomic files."""

import csv
import io
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.columns import IdColumn, TimeColumn
from sigma.datamodules.readers.lines import open_raw, readable
from sigma.datamodules.readers.stream import Columns, read_delimited
from sigma.errors import UserError, excerpt, listed, printable

USUAL = {
    "user": "user userid uid reviewerid customerid visitorid sessionid",
    "item": "item itemid iid movieid videoid productid asin parentasin businessid trackid "
    "tracksid songid articleid newsid artistid",
    # What tells the second comes before what may tell the day.
    "timestamp": "timestamp timestampms timems unixreviewtime unixtimestamp eventtime time ts "
    "datetime createdat date",
}
log = logging.getLogger(__name__)
Column = TypeVar("Column", IdColumn, TimeColumn)
_BATCH = 1 << 20  # rows of one Parquet column in memory at once


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


def usual_column(found: Iterable[str], usual: str) -> str | None:
    """The column whose name, but for case and signs, stands first in ``usual``, if any does."""
    names = usual.split()
    fits = sorted((c for c in found if _plain(c) in names), key=lambda c: names.index(_plain(c)))
    return fits[0] if fits else None


def role_columns(
    names: Collection[str], roles: Mapping[str, str], required: Iterable[str], path: Path
) -> dict[str, str]:
    """Role -> the column whose name is usual for it; roles without one are left out.

    Raises:
        UserError: a required role has none.
    """
    columns = {role: usual_column(names, usual) for role, usual in roles.items()}
    for role in required:
        if columns[role] is None:
            raise UserError(
                f"{path} has no column that looks like the {role}; it has: {listed(names)}. "
                f"Name it '{role}'."
            )
    return {role: name for role, name in columns.items() if name}


def choose_columns(
    found: Iterable[str], wanted: Mapping[str, str | None] | None, path: Path
) -> Columns:
    """The columns of users, items and times: those asked for, else those with usual names.

    Raises:
        UserError: a column asked for is missing, or none has a usual name (times may be absent).
    """
    found = list(found)
    chosen: dict[str, str | None] = {}
    for role, usual in USUAL.items():
        name = (wanted or {}).get(role)
        if name is not None:
            name = str(name)  # YAML reads 0 as a number
            if name not in found:
                raise UserError(
                    f"{path} has no column '{excerpt(name)}' for dataset.columns.{role}; "
                    f"it has: {listed(found)}."
                )
            chosen[role] = name
            continue
        chosen[role] = usual_column(found, usual)
        if chosen[role] is None and role != "timestamp" and any(map(is_number, found)):
            raise UserError(
                f"{path} has no header: its first line is {listed(found)}; put a line with "
                "the columns' names above it, such as user_id, item_id and timestamp."
            )
        if chosen[role] is None and role != "timestamp":
            raise UserError(
                f"{path} has no column that looks like the {role} (such as {role}_id); name it "
                f"with dataset.columns.{role}=, it has: {listed(found)}."
            )
    user, item, timestamp = chosen["user"] or "", chosen["item"] or "", chosen["timestamp"]
    if len({user, item, timestamp}) < 3:
        raise UserError(
            f"{path}: two of dataset.columns.user, .item and .timestamp "
            f"({listed([user, item, timestamp])}) name the same column; name different ones."
        )
    for name in (user, item, timestamp):
        if found.count(name or "") > 1:
            raise UserError(
                f"{path} has several columns '{excerpt(name)}'; give each a name of its own."
            )
    if timestamp is None and not set(found) <= {user, item}:
        log.warning(
            "%s: none of its columns (%s) looks like a time, so its lines are taken to be in "
            "order; if one is, name it with dataset.columns.timestamp=.",
            printable(str(path)),
            listed(found),
        )
    return Columns(user, item, timestamp)


def header_fields(path: Path, delimiter: str | None = None) -> tuple[str, list[str]]:
    """``(delimiter, fields of the first line)``; the delimiter is guessed unless given."""
    with readable(path), open_raw(path, quoted=True) as stream:
        raw = stream.readline(1 << 20)
        while raw.strip() == b"" and raw:
            raw = stream.readline(1 << 20)
    try:
        line = re.split("[\r\n]", raw.decode("utf-8-sig").lstrip("\r\n"), maxsplit=1)[0]
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line 1: the bytes are not UTF-8 text; save the file as UTF-8, or check that "
            "its name ends as its format needs (.csv, .csv.gz, .parquet, .zip)."
        ) from error
    if delimiter is None:
        delimiter = max(",\t;|", key=line.count)
    return delimiter, [field.strip('"') for field in line.split(delimiter)]


def read_csv(
    path: Path, columns: Mapping[str, str | None] | None = None, malformed: str = "error"
) -> Interactions:
    """CSV or TSV with a header; ids are kept as text, so that ``007`` is not ``7``."""
    tabs = path.name.removesuffix(".gz").lower().endswith(".tsv")
    delimiter, fields = header_fields(path, "\t" if tabs else None)
    asked = [name for name in (columns or {}).values() if name is not None]
    if any(map(is_number, asked)) and any(map(is_number, fields)):
        columns = None  # the first line is no header, which is what is to be said
    return read_delimited(
        path, choose_columns(fields, columns, path), delimiter, malformed=malformed
    )


def read_parquet(path: Path, columns: Mapping[str, str | None] | None = None) -> Interactions:
    """Parquet, one column at a time and a batch of it at once."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            chosen = choose_columns(file.schema_arrow.names, columns, path)
            where = lambda row: f"{path}, row {row + 1}"  # noqa: E731
            users = _parquet_column(file, chosen.user, IdColumn(chosen.user, where))
            items = _parquet_column(file, chosen.item, IdColumn(chosen.item, where))
            times = None
            if chosen.timestamp is not None:
                times = TimeColumn(chosen.timestamp, where)
                _parquet_column(file, chosen.timestamp, times)
            user_codes, user_ids = users.finish()
            item_codes, item_ids = items.finish()
            stamps = None if times is None else times.finish()
            lengths = {
                len(column) for column in (user_codes, item_codes, stamps) if column is not None
            }
            if lengths != {file.metadata.num_rows}:
                raise ValueError("columns of several lengths")
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # by what is damaged
        raise UserError(
            f"{path} is not a readable Parquet file; write or fetch it again."
        ) from error
    return Interactions(user_codes, item_codes, stamps, user_ids, item_ids)


def _parquet_column(file: pq.ParquetFile, name: str, column: Column) -> Column:
    for batch in file.iter_batches(_BATCH, columns=[name]):
        column.add(batch.column(0))
    return column


def read_recbole(
    path: Path,
    items: Path | None = None,
    columns: Mapping[str, str | None] | None = None,
    malformed: str = "error",
) -> Interactions:
    """RecBole's ``.inter`` (header ``user_id:token <tab> …``), titles from ``.item``.

    ``columns`` name fields with their types or without.
    """
    _, fields = header_fields(path, "\t")
    kinds = dict(zip([f.partition(":")[0] for f in fields], fields, strict=True))
    if any(":" not in field for field in fields):
        raise UserError(
            f"{path}: the header of a RecBole atomic file names its fields 'name:type', got "
            f"'{excerpt(' '.join(fields))}'; write the types, or name the file .csv or .tsv."
        )
    asked = {role: name and name.partition(":")[0] for role, name in (columns or {}).items()}
    chosen = choose_columns(kinds, asked, path)
    for name in (chosen.user, chosen.item):
        if kinds[name].endswith("_seq"):
            raise UserError(
                f"{path}: the field '{excerpt(kinds[name])}' holds sequences; use the atomic file "
                "with one interaction a line."
            )
    time = None if chosen.timestamp is None else kinds[chosen.timestamp]
    return read_delimited(
        path,
        Columns(kinds[chosen.user], kinds[chosen.item], time),
        "\t",
        None,
        None if items is None else read_recbole_items(items),
        quoted=False,
        malformed=malformed,
    )


def read_recbole_items(path: Path) -> pd.DataFrame:
    """Titles and genres, where the file has them, by item id (as text)."""
    _, fields = header_fields(path, "\t")
    names = [field.partition(":")[0] for field in fields]
    key = usual_column(names, USUAL["item"]) or names[0]
    columns = {fields[names.index(key)]: "item"}
    for role, words in (("title", ("title", "name")), ("genres", ("class", "genre", "categor"))):
        for field, name in zip(fields, names, strict=True):
            if role not in columns.values() and any(word in name.lower() for word in words):
                columns.setdefault(field, role)
    advice = "fetch it again or remove it to go on without titles"
    table = text_columns(
        path, "\t", columns, f"a RecBole atomic file ({{}}); {advice}", quoted=False
    )
    info = table.set_index("item")
    if "genres" in info:
        info["genres"] = info["genres"].str.replace(" ", "|")
    return info


def text_columns(
    path: Path, delimiter: str, columns: Mapping[str, str], fault: str, quoted: bool = True
) -> pd.DataFrame:
    """Some columns of a table with a header, as text; fields that a line lacks are empty.

    Args:
        columns: name in the file -> name in the result.
        fault: what the file is not where it cannot be read ({} is why), and advice.

    Raises:
        UserError: a quote out of place, a line of too many fields, or text that is not UTF-8.
    """
    rules: dict[str, Any] = {"quoting": csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE}
    try:
        with readable(path), open_raw(path, quoted) as stream:
            text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
            lines = csv.reader(text, delimiter=delimiter, strict=True, **rules)
            head = next(lines, [])
            places = [head.index(name) for name in columns]
            table = []
            for fields in lines:
                if len(fields) > len(head):
                    raise ValueError(f"{len(fields)} fields on line {lines.line_num}")
                if fields:
                    table.append([fields[k] if k < len(fields) else "" for k in places])
    except UserError:
        raise
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is not {fault.format(excerpt(error))}.") from error
    return pd.DataFrame(table, columns=list(columns.values()), dtype=object)
