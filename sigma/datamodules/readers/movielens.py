"""MovieLens as GroupLens packs it: ``ratings.dat``, ``u.data`` or ``ratings.csv``, with titles."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.lines import open_raw, readable
from sigma.datamodules.readers.stream import Columns, read_delimited
from sigma.datamodules.readers.table import header_fields, text_columns
from sigma.errors import UserError, listed

_FIELDS = ("user", "item", "rating", "timestamp")
_COLUMNS = Columns("user", "item", "timestamp")
_ADVICE = "fetch it again or remove it to go on without titles"
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
    info = None if movies is None else _read_movies_csv(movies)
    return read_delimited(
        path, Columns("userId", "movieId", "timestamp"), ",", None, info, malformed=malformed
    )


def read_movies_dat(path: Path) -> pd.DataFrame:
    """``id::title::genre|genre`` a line -> ``title`` and ``genres`` by item id (as text)."""
    return _info(path, _films(path, "::", 3))


def read_u_item(path: Path) -> pd.DataFrame:
    """The same of ``u.item``, a film a line with a flag for each genre."""
    films: list[list[str]] = []
    for item, title, _, _, _, *flags in _films(path, "|", 5 + len(_GENRES)):
        genres = "|".join(genre for genre, on in zip(_GENRES, flags, strict=True) if on == "1")
        films.append([item, title, genres])
    return _info(path, films)


def _films(path: Path, separator: str, places: int) -> Iterator[list[str]]:
    """The fields of each line, of Latin-1 or, as in ML-10M, UTF-8."""
    with readable(path), open_raw(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                text = line.decode("latin-1")
            fields = text.rstrip("\r\n").split(separator)
            if len(fields) != places:
                raise UserError(
                    f"{path}, line {number}: not a film as MovieLens packs it ({len(fields)} "
                    f"fields separated by '{separator}', not {places}); {_ADVICE}."
                )
            yield fields


def _info(path: Path, films: Iterable[Sequence[str]]) -> pd.DataFrame:
    table = pd.DataFrame(list(films), columns=["id", "title", "genres"], dtype=object)
    return table.set_index("id")


def _read_movies_csv(path: Path) -> pd.DataFrame:
    _, names = header_fields(path, ",")
    if not {"movieId", "title"} <= set(names):
        raise UserError(
            f"{path} has the columns {listed(names)}, but movieId and title are needed; {_ADVICE}."
        )
    columns: dict[str, str] = {
        name: name for name in ("movieId", "title", "genres") if name in names
    }
    fault = f"a list of films as MovieLens packs it ({{}}); {_ADVICE}"
    return text_columns(path, ",", columns, fault).set_index("movieId")
