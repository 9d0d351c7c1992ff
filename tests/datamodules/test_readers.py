"""Every reader on small raw files in the official formats gives the same interactions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.locate import locate
from tests.datamodules import raw_files as raw

ROWS = raw.interactions()


def plain(path: Path, rows: list[raw.Row]) -> Path:
    return raw.ml_100k(path, rows) / "u.data"


SOURCES: dict[str, Callable[[Path], Path]] = {
    "ml_1m folder": lambda p: raw.ml_1m(p / "x", ROWS),
    "ml_1m zip": lambda p: raw.zipped(raw.ml_1m(p / "ml-1m", ROWS)),
    "ml_100k folder": lambda p: raw.ml_100k(p / "x", ROWS),
    "ml_100k file": lambda p: raw.ml_100k(p / "x", ROWS) / "u.data",
    "ml csv folder": lambda p: raw.ml_csv(p / "x", ROWS),
    "ml csv nested folder": lambda p: raw.ml_csv(p / "x" / "ml-32m", ROWS).parent,
    "ml csv zip": lambda p: raw.zipped(raw.ml_csv(p / "ml-latest-small", ROWS)),
    "amazon 2014": lambda p: raw.amazon_2014(p / "ratings_Beauty.csv", ROWS),
    "amazon 2014 gz": lambda p: raw.amazon_2014(p / "ratings_Beauty.csv.gz", ROWS),
    "amazon 2018": lambda p: raw.amazon_2018(p / "Video_Games.csv", ROWS),
    "amazon reviews": lambda p: raw.amazon_reviews(p / "reviews_Beauty_5.json", ROWS),
    "amazon reviews gz": lambda p: raw.amazon_reviews(p / "reviews_Beauty_5.json.gz", ROWS),
    "yelp folder": lambda p: raw.yelp(p / "x", ROWS),
    "recbole folder": lambda p: raw.recbole(p / "x", "ml-100k", ROWS),
    "recbole zip": lambda p: raw.zipped(raw.recbole(p / "ml-100k", "ml-100k", ROWS)),
    "csv": lambda p: raw.csv_table(p / "mine.csv", ROWS),
    "parquet": lambda p: raw.parquet(p / "mine.parquet", ROWS),
}


def number(raw_id: object) -> int:
    """The number in a raw id such as B000000007, u7 or 7."""
    return int("".join(c for c in str(raw_id) if c.isdigit()))


def rows_of(data: Interactions) -> list[raw.Row]:
    assert data.timestamps is not None
    return [
        raw.Row(number(data.user_ids[u]), number(data.item_ids[i]), int(t))
        for u, i, t in zip(data.users, data.items, data.timestamps, strict=True)
    ]


@pytest.mark.parametrize("source", SOURCES)
def test_reader_returns_the_rows_in_file_order(source: str, tmp_path: Path) -> None:
    data = locate(SOURCES[source](tmp_path), tmp_path / "unpacked").read()
    assert rows_of(data) == ROWS
    assert data.users.dtype == data.items.dtype == np.int32
    assert data.timestamps is not None
    assert data.timestamps.dtype == np.int64


def test_codes_follow_the_first_appearance(tmp_path: Path) -> None:
    data = locate(raw.csv_table(tmp_path / "a.csv", ROWS), tmp_path).read()
    first = list(dict.fromkeys(str(row.user) for row in ROWS))
    assert data.user_ids.tolist() == first
    assert data.item_ids.tolist() == list(dict.fromkeys(str(row.item) for row in ROWS))


@pytest.mark.parametrize(
    ("source", "title", "genres"),
    [
        ("ml_1m folder", "Café 3 (1995)", "Comedy|Drama"),
        ("ml_1m zip", "Café 3 (1995)", "Comedy|Drama"),
        ("ml_100k folder", "Café 3 (1995)", "Comedy|Drama"),
        ("ml csv folder", "Café, the 3 (1995)", "Comedy|Drama"),
        ("recbole folder", 'The "Café" 3', "Comedy|Drama"),
    ],
)
def test_titles_and_genres_of_films(source: str, title: str, genres: str, tmp_path: Path) -> None:
    data = locate(SOURCES[source](tmp_path), tmp_path / "unpacked").read()
    assert data.item_info is not None
    assert data.item_info.loc["3", ["title", "genres"]].tolist() == [title, genres]


def test_titles_of_products_and_businesses(tmp_path: Path) -> None:
    raw.amazon_meta(tmp_path / "meta_Beauty.json.gz")
    data = locate(raw.amazon_2014(tmp_path / "ratings_Beauty.csv", ROWS), tmp_path).read()
    assert data.item_info is not None
    assert data.item_info.loc[raw.asin(3), "title"] == "Thing 3"
    data = locate(raw.yelp(tmp_path / "yelp", ROWS), tmp_path).read()
    assert data.item_info is not None
    assert data.item_info.loc["b3"].tolist() == ["Café 3", "Food|Bars"]


def test_sequence_text(tmp_path: Path) -> None:
    data = locate(raw.write(tmp_path / "a.txt", "7 1 2 1\n\n9 2\n"), tmp_path).read()
    assert data.user_ids.tolist() == ["7", "9"]
    assert data.users.tolist() == [0, 0, 0, 1]
    assert data.items.tolist() == [0, 1, 0, 1]
    assert data.timestamps is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["881250949.0", "881250948"], [881250949, 881250948]),
        (["1.5", "1.25"], [1_500_000, 1_250_000]),  # a fraction: all in microseconds
        (["2018-10-31", "2018-10-30"], [1540944000, 1540857600]),
        (["2018-10-31 12:00:00", "2018-10-31"], [1540987200, 1540944000]),
        (["2018-10-31T12:00:00Z", "2018-10-31T12:00:01Z"], [1540987200, 1540987201]),
        (["2018-10-31T12:00:00+02:00", "2018-10-31"], [1540980000, 1540944000]),
        (["2018-10-31 12:00:00.5", "2018-10-31"], [1540987200500000, 1540944000000000]),
        ([" 12 ", "13"], [12, 13]),
        (["1540987200000", "1540987200001"], [1540987200000, 1540987200001]),  # milliseconds
    ],
)
def test_times_of_all_kinds(values: list[str], expected: list[int], tmp_path: Path) -> None:
    text = "user,item,time\n" + "".join(f"a,b,{value}\n" for value in values)
    data = locate(raw.write(tmp_path / "a.csv", text), tmp_path).read()
    assert data.timestamps is not None
    assert data.timestamps.tolist() == expected


@pytest.mark.parametrize(
    "times",
    [
        pa.array([5.0, 6.0]),
        pa.array([5_000_000_000, 6_000_000_000], pa.timestamp("ns")),
        pa.array([5_000, 6_000], pa.timestamp("ms", "UTC")),
        pa.array([5, 6], pa.int32()),
        pa.array(["5", "6"]),
        pa.array(["5", "6"]).dictionary_encode(),
    ],
    ids=lambda array: str(array.type),
)
def test_times_of_parquet(times: pa.Array, tmp_path: Path) -> None:
    path = raw.parquet(tmp_path / "a.parquet", [raw.Row(1, 1, 0)] * 2, timestamp=times)
    data = locate(path, tmp_path).read()
    assert data.timestamps is not None
    assert data.timestamps.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([7, 5, 7]), [7, 5]),
        (pa.array([7.0, 5.0, 7.0]), [7, 5]),
        (pa.array(["b", "a", "b"]), ["b", "a"]),
        (pa.array(["b", "a", "b"], pa.large_string()), ["b", "a"]),
        (pa.DictionaryArray.from_arrays(pa.array([1, 0, 1]), ["a", "b"]), ["b", "a"]),
        (pa.array([2**62, 1, 2**62]), [2**62, 1]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_ids_of_parquet(ids: pa.Array, expected: list[object], tmp_path: Path) -> None:
    path = raw.parquet(tmp_path / "a.parquet", [raw.Row(1, 1, 0)] * 3, user_id=ids)
    data = locate(path, tmp_path).read()
    assert data.user_ids.tolist() == expected
    assert data.users.tolist() == [0, 1, 0]


def test_columns_by_name_and_leading_zeros(tmp_path: Path) -> None:
    path = raw.write(tmp_path / "a.tsv", "when\twhat\twho\n5\t007\tx\n4\t7\tx\n")
    names = {"user": "who", "item": "what", "timestamp": "when"}
    data = locate(path, tmp_path, columns=names).read(names)
    assert data.item_ids.tolist() == ["007", "7"]
    assert data.timestamps is not None
    assert data.timestamps.tolist() == [5, 4]


def test_table_without_times_is_in_the_order_of_the_file(tmp_path: Path) -> None:
    data = locate(raw.write(tmp_path / "a.csv", "user_id,item_id\nx,1\nx,0\n"), tmp_path).read()
    assert data.timestamps is None


def test_byte_order_mark_quotes_and_windows_lines(tmp_path: Path) -> None:
    text = '\ufeff"user_id","item_id","timestamp"\r\n"a","b,c",1\r\n"a","d",2\r\n'
    data = locate(raw.write(tmp_path / "a.csv", text), tmp_path).read()
    assert data.item_ids.tolist() == ["b,c", "d"]
