"""MovieLens as GroupLens packs it: ``ratings.dat``, ``u.data`` or ``ratings.csv``, with titles."""

from pathlib import Path

import pandas as pd

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.lines import open_raw, readable
from sigma.datamodules.readers.stream import Columns, read_delimited
from sigma.errors import UserError, excerpt, listed

_FIELDS = ("user", "item", "rating", "timestamp")
_COLUMNS = Columns("user", "item", "timestamp")
# The order of the 19 flags at the end of each line of u.item (file u.genre).
_GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)


def read_ratings_dat(
    path: Path, movies: Path | None = None, malformed: str = "error"
) -> Interactions:
    """ML-1M and ML-10M: ``user::item::rating::timestamp``; ``movies.dat`` in Latin-1 or UTF-8."""
    info = None if movies is None else read_movies_dat(movies)
    return read_delimited(path, _COLUMNS, "::", _FIELDS, info, quoted=False, malformed=malformed)


def read_u_data(path: Path, items: Path | None = None, malformed: str = "error") -> Interactions:
    """ML-100K: tab-separated ``user item rating timestamp``; ``u.item`` with flags for genres."""
    info = None if items is None else read_u_item(items)
    return read_delimited(path, _COLUMNS, "\t", _FIELDS, info, quoted=False, malformed=malformed)


def read_ratings_csv(
    path: Path, movies: Path | None = None, malformed: str = "error"
) -> Interactions:
    """ML-latest-small, 20M, 25M, 32M: ``userId,movieId,rating,timestamp`` with a header."""
    info = None if movies is None else _info(movies, ",", None, "utf-8")
    return read_delimited(
        path, Columns("userId", "movieId", "timestamp"), ",", None, info, malformed=malformed
    )


def read_movies_dat(path: Path) -> pd.DataFrame:
    """``id::title::genre|genre`` a line -> ``title`` and ``genres`` by item id (as text)."""
    return _info(path, "::", ["id", "title", "genres"], "latin-1")


def read_u_item(path: Path) -> pd.DataFrame:
    """The same of ``u.item``, a film a line with a flag for each genre."""
    names = ["id", "title", "released", "video_released", "url", *_GENRES]
    table = _info(path, "|", names, "latin-1")
    flags = table[list(_GENRES)].to_numpy() == "1"
    return table[["title"]].assign(
        genres=["|".join(g for g, on in zip(_GENRES, row, strict=True) if on) for row in flags]
    )


def _info(path: Path, separator: str, names: list[str] | None, encoding: str) -> pd.DataFrame:
    """Titles and genres by item id (as text)."""
    try:
        with readable(path), open_raw(path, quoted=separator == ",") as stream:
            if separator == "::":
                text = stream.read()
                try:
                    lines = text.decode("utf-8").split("\n")  # ML-10M
                except UnicodeDecodeError:
                    lines = text.decode(encoding).split("\n")
                rows = [line.rstrip("\r").split("::") for line in lines if line.strip()]
                table = pd.DataFrame(rows, columns=names, dtype=object)
            else:
                table = pd.read_csv(
                    stream,
                    sep=separator,
                    names=names,
                    encoding=encoding,
                    dtype=str,
                    keep_default_na=False,
                    quoting=0 if separator == "," else 3,
                )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"{path} is not a list of films as MovieLens packs it ({excerpt(error)}); fetch it "
            "again or remove it to go on without titles."
        ) from error
    key = "id" if names else "movieId"
    if key not in table or "title" not in table:
        raise UserError(
            f"{path} has the columns {listed(table.columns)}, but movieId and title "
            "are needed; fetch it again or remove it to go on without titles."
        )
    return table.set_index(key)
