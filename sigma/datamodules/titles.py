"""Titles and genres of items: those that came with the data, or those of another file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.readers.lines import readable
from sigma.datamodules.readers.movielens import read_movies_dat, read_u_item
from sigma.datamodules.readers.table import (
    USUAL,
    header_fields,
    read_recbole_items,
    role_columns,
    text_columns,
)
from sigma.errors import UserError, excerpt

ROLES = {
    "item": USUAL["item"] + " id",
    "title": "title movietitle name itemname productname",
    "genres": "genres genre class categories category",
}
NONE = ("", "(no genres listed)", "unknown")  # MovieLens' words for no genre


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

    It is ``u.item``, ``movies.dat``, ``movies.csv``, a RecBole ``.item`` file, or a table (CSV,
    TSV, Parquet) with columns for item, title and, perhaps, genres parted by ``|``, ``;`` or ``,``.

    Raises:
        UserError: nothing there, or nothing that can be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"The file of titles {path} is no file; check the path.")
    ending = "u.item" if path.name.lower() == "u.item" else path.suffix.lower()
    special = {"u.item": read_u_item, ".dat": read_movies_dat, ".item": read_recbole_items}
    table = special.get(ending, _read_table)(path)
    if "title" not in table:
        raise UserError(f"{path} has no column of titles; name one 'title'.")
    return _titles(table.index, table)


def _read_table(path: Path) -> pd.DataFrame:
    fault = "a table with a header ({}); write one with columns for item, title and genres"
    if path.suffix.lower() not in (".parquet", ".pq"):
        delimiter, names = header_fields(path)
        return text_columns(path, delimiter, _roles(names, path), fault).set_index("item")
    try:
        with readable(path):
            roles = _roles(pq.read_schema(path).names, path)
            table = pd.read_parquet(path, columns=list(roles))
    except UserError:
        raise
    except (ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} is not {fault.format(excerpt(error))}.") from error
    return table.rename(columns=roles).set_index("item")


def _roles(names: list[str], path: Path) -> dict[str, str]:
    """Column -> what it is, of those that matter."""
    columns = role_columns(names, ROLES, ("item", "title"), path)
    return {name: role for role, name in columns.items()}


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
