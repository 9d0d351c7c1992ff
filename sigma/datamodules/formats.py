"""The one list of formats: what a file looks like, and how it is read."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from sigma.datamodules.database import Database, identifier
from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers import sources
from sigma.datamodules.readers.layout import (
    BLANKS,
    Layout,
    is_number,
    is_value,
    layout_of,
    no_header,
)
from sigma.datamodules.readers.parquet import parquet
from sigma.datamodules.readers.read import Reading, read
from sigma.datamodules.readers.roles import USUAL, usual_column
from sigma.datamodules.readers.sources import Source
from sigma.datamodules.readers.text import (
    PACKED,
    PARQUET,
    Text,
    bare_name,
    is_parquet,
    matches,
    read_text,
)
from sigma.datamodules.readers.whole_numbers import whole_numbers
from sigma.datamodules.titles import read_info
from sigma.errors import UserError, excerpt

ENDINGS = (
    *(".csv", ".tsv", ".txt", ".json", ".jsonl", ".dat", ".data", ".inter", ".ndjson", ".log"),
    *(".events", ".tab", ".psv", ".ssv"),
)

RATING = ("user", "item", "rating", "timestamp")
UNNAMED: dict[str, tuple[str, ...]] = {
    "ratings*.dat": RATING,
    "u*.data": RATING,
    "LFM-1b_LEs.txt": ("user_id", "artist_id", "album_id", "track_id", "timestamp"),
    "userid-timestamp-artid-artname-traid-traname.tsv": (
        *("user", "timestamp", "artist_id", "artist_name", "track_id", "track_name"),
    ),
    "usersha1-artmbid-artname-plays.tsv": ("user", "artist_mbid", "item", "plays"),
    "loc-*_totalCheckins.txt": ("user", "timestamp", "latitude", "longitude", "item"),
    "dataset_TSMC2014_*.txt": (
        *("user", "item", "category_id", "category", "latitude", "longitude", "offset"),
        "timestamp",
    ),
    "dataset_TIST2015_Checkins*.txt": ("user", "item", "timestamp", "offset"),
    "dataset_WWW_Checkins*.txt": ("user", "item", "timestamp", "offset"),
    "UserBehavior*.csv": ("user", "item", "category", "behavior", "timestamp"),
    "yoochoose-clicks*.dat": ("session", "timestamp", "item", "category"),
    "yoochoose-test*.dat": ("session", "timestamp", "item", "category"),
    "yoochoose-buys*.dat": ("session", "timestamp", "item", "price", "quantity"),
}
"""Columns of files that are published without a header, by their names."""

ENCODINGS = {"dataset_TSMC2014_*.txt": "latin-1"}
"""Of published files that are not UTF-8."""

TIMES = {"behaviors.tsv": "%m/%d/%Y %I:%M:%S %p"}
"""Of published files whose times say not by themselves what is the month."""

TITLES = (
    *(("ratings*.dat", "movies.dat"), ("u.data", "u.item"), ("ratings.csv", "movies.csv")),
    *(("*.inter", "{stem}.item"), ("behaviors.tsv", "news.tsv")),
    ("yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json"),
    *(("ratings_*.csv", "meta_{category}.json"), ("reviews_*.json", "meta_{category}.json")),
    *(("*.csv", "meta_*.json"), ("*.json", "meta_*.json"), ("*.jsonl", "meta_*.jsonl")),
)
"""Names of files, and of those with titles that lie beside them."""

_PAIRS = 1000  # lines, after which two fields a line are surely no histories


@dataclass(frozen=True)
class RawData:
    """Files of interactions, and the file of titles beside them."""

    files: tuple[Path, ...]
    info: Path | None = None
    split: bool = False  # into training, validation and test, a file each

    @property
    def path(self) -> Path:
        return self.files[0]

    @property
    def all_files(self) -> list[Path]:
        return [*self.files, *([] if self.info is None else [self.info])]

    def read(self, settings: Reading | None = None, folder: Path | None = None) -> Interactions:
        """All interactions in the order of the files.

        Args:
            folder: for what does not fit into memory.

        Raises:
            UserError: a file that cannot be read.
        """
        settings = settings or Reading()
        if settings.time_format is None:
            settings = replace(settings, time_format=by_name(self.path, TIMES))
        database = Database(folder, sum(file.stat().st_size for file in self.files))
        if all(map(is_parquet, self.files)):
            place = self.path if len(self.files) == 1 else Path(os.path.commonpath(self.files))
            tables = {file: (file,) for file in self.files} if self.split else {place: self.files}
            parts = [parquet(database, files, place) for place, files in tables.items()]
        else:
            parts = [source_of(file, database.folder, settings) for file in self.files]
        copies = [part.text.plain for part in parts if part.text]
        info = None if self.info is None else read_info(self.info, database)
        table = None if len(parts) > 1 else whole_numbers(parts[0], settings)
        if table is not None:
            data = Interactions(database, table, timed="time" in table.column_names)
        else:
            database.allow([*self.files, *copies, *database.folder.iterdir()])
            data = read(parts, database, settings)
        if not self.split:
            data.ends = ()
        data.item_info = info
        return data


def by_name(path: Path, table: Mapping[str, Any]) -> Any:
    """What a table has for a file of this name, or None."""
    name = bare_name(path)
    return next((value for pattern, value in table.items() if matches(name, pattern)), None)


def titles_beside(path: Path) -> Path | None:
    """The only file of titles that belongs to this one."""
    name = bare_name(path)
    stem = Path(name).stem
    words = {"stem": stem, "category": re.sub(r"^(ratings|reviews)_|_5$", "", stem)}
    for pattern, beside in TITLES:
        if matches(name, pattern):
            wanted = beside.format(**words)
            files = [p for ending in ("", *PACKED) for p in path.parent.glob(wanted + ending)]
            if len(files) == 1 and files[0] != path:
                return files[0]
    return None


def source_of(path: Path, folder: Path, settings: Reading) -> Source:
    """The rows of a file of text.

    Args:
        folder: for copies in another form.

    Raises:
        UserError: no format fits.
    """
    name = bare_name(path)
    ending = Path(name).suffix.lower()
    if ending in PARQUET:
        raise UserError(f"{path} is Parquet, but not all files are; write all in one format.")
    if ending not in ENDINGS and settings.names is None and settings.delimiter is None:
        raise UserError(
            f"{path}: the ending '{excerpt(path.suffix)}' is not one of {', '.join(ENDINGS[:8])}, "
            f"these also with {', '.join(PACKED)}, or .parquet, .zip or .tar; rename or convert "
            "the file."
        )
    text = read_text(path, folder, settings.encoding or by_name(path, ENCODINGS))
    first = text.head[0][1].lstrip()
    braced = first.startswith(("{", "[")) and settings.names is None
    if braced or ending in (".json", ".jsonl", ".ndjson"):
        return sources.records(text, folder)
    if re.fullmatch(r"\d+:", first.strip()):
        return sources.blocks(text)
    if name == "behaviors.tsv" and settings.names is None:
        return sources.impressions(text)
    if ending == ".inter":
        return _atomic(text, settings)
    layout = layout_of(text, settings.delimiter, settings.names)
    if layout.names is None:
        known = by_name(path, UNNAMED)
        fits = known is not None and len(known) == layout.width
        layout = replace(layout, names=known) if fits else _named(text, layout, ending)
        if layout.names is None:
            return _histories(text, layout, ending)
    quoted = text.quotes and layout.names is not by_name(path, UNNAMED)
    source = sources.delimited(text, layout, quoted)
    return with_numbers(source, layout) if settings.where else source


def with_numbers(source: Source, layout: Layout) -> Source:
    """With the columns whose first values are all numbers."""
    assert layout.names is not None
    rows = [row for row in layout.rows if len(row) == layout.width]
    numbers: dict[str, str] = {}
    for k, name in enumerate(source.kinds):
        numbers |= sources.number_kind(name, (row[k] for row in rows))
    return replace(source, numbers=numbers)


def _named(text: Text, layout: Layout, ending: str) -> Layout:
    """With the names of a table's columns, where its form alone tells them."""
    first = layout.rows[0]
    if layout.width == 4 and (layout.delimiter == "::" or ending in (".dat", ".data")):
        return replace(layout, names=RATING)
    if layout.delimiter == "," and layout.width == 4 and all(map(is_number, first[2:])):
        heads = [row[:2] for row in layout.rows if len(row) == 4]
        tens = [sum(len(row[k]) == 10 for row in heads) for k in (0, 1)]
        # Amazon's item ids have 10 signs, nearly all of its users' have more.
        users = [sum(bool(re.fullmatch("A[0-9A-Z]{9,}", row[k])) for row in heads) for k in (0, 1)]
        if max(users) * 2 > len(heads) and max(tens) * 2 > len(heads):
            if tens[0] == tens[1]:
                raise UserError(
                    f"{text.path}: cannot tell users from items, as Amazon item ids have 10 "
                    "characters in one of the first two columns only; name the columns in order "
                    "with 'dataset.columns.names=[user,item,rating,timestamp]'."
                )
            order = ("item", "user") if tens[0] > tens[1] else ("user", "item")
            return replace(layout, names=(*order, "rating", "timestamp"))
    return layout


def _histories(text: Text, layout: Layout, ending: str) -> Source:
    """Ids alone: a user's items on one line, or a ``user item`` pair a line, both in order.

    Raises:
        UserError: a table without header.
    """
    blank = layout.delimiter in (BLANKS, "\t") or layout.width == 1
    tabs = layout.delimiter == "\t" and layout.width > 2 and all(row[-1] for row in layout.rows)
    rows = layout.rows if tabs else [line.split() for _, line in text.head]
    widths = Counter(map(len, rows))
    users = [row[0] for row in rows]
    once = len(set(users)) == len(users)
    several = len(widths) == 1 and min(widths) > 2 and len(users) > 1
    again = len(users) > 10 and len(set(users)) < len(users) / 2
    fields = islice((field for row in rows for field in row[1:]), 100_000)  # enough to tell
    values = (field for field in fields if not re.fullmatch(r"[+-]?\d+", field))
    table = several and (again or any(map(is_value, values)))
    if not blank or ending in (".csv", ".tsv") or table:
        raise no_header(text, layout)
    if widths[2] > 0.75 * len(rows) and (not once or len(users) >= _PAIRS):
        return sources.spaced(text, ("user", "item"), 0, "'user item'")
    return sources.sequences(text)


def _atomic(text: Text, settings: Reading) -> Source:
    """RecBole's ``.inter``: a header ``user_id:token <tab> …``, no quotes."""
    layout = layout_of(text, "\t")
    if layout.names is None:  # it is the header whatever it says
        header = tuple(layout.rows[0])
        layout = Layout("\t", header, layout.above + 1, layout.rows[1:], header)
    assert layout.names is not None
    fields = layout.names
    if any(":" not in field for field in fields):
        raise UserError(
            f"{text.path}: the header of a RecBole atomic file names its fields 'name:type', got "
            f"'{excerpt(' '.join(fields))}'; write the types, or name the file .csv or .tsv."
        )
    names = tuple(field.partition(":")[0] for field in fields)
    lists = [n for n, field in zip(names, fields, strict=True) if field.endswith("_seq")]
    histories = [name for name in lists if name.startswith(("item_id", "item"))]
    if histories and len(histories) < len([n for n in names if n.startswith("item")]):
        raise UserError(
            f"{text.path}: the field '{excerpt(histories[0])}' holds the history of each sample, "
            "so its interactions stand in the file many times; use the atomic file with one "
            "interaction a line."
        )
    layout = replace(layout, names=names)
    source = sources.delimited(text, layout, False)
    if not lists:
        return with_numbers(source, layout) if settings.where else source
    split = ", ".join(f"string_split({identifier(n)}, ' ') AS {identifier(n)}" for n in lists)
    kinds = {n: "VARCHAR[]" if n in lists else "VARCHAR" for n in names}
    kinds = {"item_id" if n in histories else n: kind for n, kind in kinds.items()}
    renamed = f" RENAME ({identifier(histories[0])} AS item_id)" if histories else ""
    query = f"SELECT * REPLACE ({split}) FROM ({source.query})"
    query = f"SELECT *{renamed} FROM ({query})"
    return replace(source, query=query, kinds=kinds, layout=None)


def is_table(path: Path, folder: Path, settings: Reading) -> bool:
    """Whether a file has columns of users and of items."""
    try:
        if is_parquet(path):
            names = list(parquet(Database(), [path], path).kinds)
        else:
            names = list(sources.partitioned(source_of(path, folder, settings)).kinds)
    except UserError:
        return False
    return all(
        settings.columns.get(role) in names or usual_column(names, USUAL[role])
        for role in ("user", "item")
    )
