"""Titles and genres of items: those that came with the data, or those of another file."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from sigma.datamodules.database import Database, identifier, literal
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.readers import sources
from sigma.datamodules.readers.faults import first_fault
from sigma.datamodules.readers.layout import layout_of
from sigma.datamodules.readers.parquet import parquet
from sigma.datamodules.readers.roles import USUAL, plain, role_columns, usual_column
from sigma.datamodules.readers.sources import FAULT, LINE, Source
from sigma.datamodules.readers.text import bare_name, is_parquet, read_text
from sigma.errors import UserError, excerpt

ROLES = {
    "item": USUAL["item"] + " id",
    "title": "title movietitle name itemname productname",
    "genres": "genres genre class categories category",
}
NONE = ("", "(no genres listed)", "unknown")  # MovieLens' words for no genre
# The order of the 19 flags at the end of each line of u.item (file u.genre).
FLAGS = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance"),
    *("Sci-Fi", "Thriller", "War", "Western"),
)
UNNAMED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "movies.dat": ("::", ("item", "title", "genres")),
    "u.item": ("|", ("item", "title", "date", "video", "url", *FLAGS)),
    "news.tsv": ("\t", ("item", "category", "subcategory", "title", *"abcd")),
}
_SMALL = 1 << 20  # bytes
_ADVICE = "fetch it again or remove it to go on without titles"


class Title(NamedTuple):
    """What a reader sees of an item; ``genres`` in the order of the file, empty if unknown."""

    title: str
    genres: tuple[str, ...] = ()


def titles_of(data: Sequences) -> dict[str, Title]:
    """Raw item id -> title and genres that came with the data; items without a title are absent."""
    if data.item_info is None or "title" not in data.item_info:
        return {}
    return _titles(data.item_ids, data.item_info)


def read_titles(path: Path) -> dict[str, Title]:
    """Raw item id -> title and genres of a file.

    It is ``u.item``, ``movies.dat``, a RecBole ``.item`` file, Amazon's or Yelp's records, or a
    table (CSV, TSV, JSON lines, Parquet) with columns for item, title and, perhaps, genres parted
    by ``|``, ``;`` or ``,``.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"The file of titles {path} is no file; check the path.")
    table = read_info(path)
    if "title" not in table:
        raise UserError(f"{path} has no column of titles; name one 'title'.")
    return _titles(table.index, table)


def read_info(path: Path, database: Database | None = None) -> pd.DataFrame:
    """``title`` and ``genres``, those that a file has, by raw item id (as text).

    Args:
        database: what reads it; None is one of its own.

    Raises:
        UserError: it cannot be read.
    """
    database = database or Database()
    with tempfile.TemporaryDirectory() as folder:
        source = _source(path, Path(folder), database)
        columns = _columns(source, path)
        if (table := _simple(path, source, columns)) is not None:
            return table
        parts = {role: _text(source, name) for role, name in columns.items()}
        if path.name.lower() == "u.item":
            flags = (f"CASE WHEN {identifier(f)} = '1' THEN {literal(f)} END" for f in FLAGS)
            parts["genres"] = f"concat_ws('|', {', '.join(flags)})"
        selected = ", ".join(f"{sql} AS {role}" for role, sql in parts.items())
        query = f"SELECT {selected}, {LINE} AS line, {FAULT} AS fault FROM ({source.query})"
        try:
            rows = database.connection.execute(query).df()
        except duckdb.Error as error:
            read = [name for name in source.columns if name in columns.values()]
            fault = first_fault(database, source, read)
            if fault is None:
                reason = excerpt(" ".join(str(error).split()), 100)
                raise UserError(f"{path} cannot be read ({reason}); {_ADVICE}.") from error
            faults = [[fault.line, fault.reason]]
        else:
            faults = rows.loc[rows["fault"].notna(), ["line", "fault"]].values.tolist()
    if faults:
        raise UserError(
            f"{path}, {source.unit} {faults[0][0]}: not an item's record "
            f"({excerpt(faults[0][1], 80)}); {_ADVICE}."
        )
    return rows.drop(columns=["line", "fault"]).dropna(subset="item").set_index("item")


def _simple(path: Path, source: Source, columns: Mapping[str, str]) -> pd.DataFrame | None:
    """What ``read_info`` gives, of a table whose fields are as they stand; None of any other."""
    text, layout = source.text, source.layout
    if text is None or layout is None or source.quoted or text.size > _SMALL:
        return None
    if len(layout.delimiter) > 1 or path.name.lower() == "u.item":
        return None
    body = text.content()
    if b"\r" in body or b"\0" in body or b"\n\n" in body:
        return None
    names, used = list(source.kinds), list(columns.values())
    try:
        table = csv.read_csv(
            pa.BufferReader(body),
            csv.ReadOptions(column_names=names, skip_rows=layout.above),
            csv.ParseOptions(delimiter=layout.delimiter, quote_char=False),
            csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                include_columns=used,
            ),
        )
    except pa.ArrowInvalid:  # lines that are no rows, or bytes that are no text
        return None
    for place, name in enumerate(used):
        if _is_spaced(name):
            spaced = pc.replace_substring(table[name], " ", "|")
            table = table.set_column(place, name, spaced)
    info: pd.DataFrame = table.rename_columns(list(columns)).to_pandas()
    return info.dropna(subset="item").set_index("item")


def _source(path: Path, folder: Path, database: Database) -> Source:
    name = bare_name(path).lower()
    if is_parquet(path):
        return parquet(database, [path], path)
    text = read_text(path, folder)
    if name in UNNAMED and any("\ufffd" in line for _, line in text.numbered()):
        text = read_text(path, folder, "latin-1")  # that of MovieLens before 10M
    if text.head[0][1].lstrip().startswith("{") or ".json" in name:
        return sources.records(text, folder)
    delimiter, names = UNNAMED.get(name, (None, None))
    atomic = name.endswith(".item") and name not in UNNAMED
    try:
        layout = layout_of(text, "\t" if atomic else delimiter, names)
    except UserError as error:
        if names is None:
            raise
        raise UserError(
            f"{path} is not laid out as a {name} is, {len(names)} columns separated by "
            f"'{delimiter}' ({', '.join(names[:4])} …); {_ADVICE}."
        ) from error
    if layout.names is None:
        raise UserError(
            f"{path} is not a table with a header; write one with columns for item, title and "
            "genres."
        )
    quoted = text.quotes and delimiter is None and not atomic
    return sources.delimited(text, layout, quoted)


def _columns(source: Source, path: Path) -> dict[str, str]:
    """Role -> column."""
    names = {name.partition(":")[0]: name for name in source.kinds}
    if not path.name.lower().endswith(".item"):
        return role_columns(list(source.kinds), ROLES, ("item", "title"), path)
    columns = {"item": usual_column(names, USUAL["item"]) or next(iter(names))}
    for role, words in (("title", ("title", "name")), ("genres", ("class", "genre", "categor"))):
        fits = [n for n in names if any(word in plain(n) for word in words)]
        if fits and fits[0] not in columns.values():
            columns[role] = fits[0]
    return {role: names[name] for role, name in columns.items()}


def _text(source: Source, name: str) -> str:
    column = identifier(name)
    if source.kinds[name].endswith("[]"):
        return f"array_to_string({column}, '|')"
    return f"replace({column}, ' ', '|')" if _is_spaced(name) else f"{column}::VARCHAR"


def _is_spaced(name: str) -> bool:
    """Whether a column's genres have blanks between them."""
    return name.endswith(":token_seq") and any(w in name for w in ("class", "genre", "categor"))


def _titles(ids: Iterable[Any], info: pd.DataFrame) -> dict[str, Title]:
    genres = info["genres"] if "genres" in info else [None] * len(info)
    return {
        str(raw): Title(title, _split(cell))
        for raw, title, cell in zip(ids, info["title"], genres, strict=True)
        if isinstance(title, str)
    }


def _split(genres: Any) -> tuple[str, ...]:
    """Genres of a cell: a text, parted by the first of ``| ; ,`` it holds, or a list."""
    if isinstance(genres, str):
        genres = genres.split(next((sign for sign in "|;," if sign in genres), "|"))
    parts = genres if pd.api.types.is_list_like(genres) else ()
    stripped = (str(part).strip() for part in parts)
    return tuple(part for part in stripped if part not in NONE)
