"""Small files of kinds that people have: each is read as it is meant, or told what is wrong."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigma.datamodules.sets.custom import Custom
from sigma.errors import UserError
from tests.datamodules.reading import read

CASES = Path(__file__).parents[3] / "shared" / "cases"
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not there"),
]
Rows = list[tuple[str, str, Any]]


def each(users: Sequence[Any] | str, items: Sequence[Any] | str, times: Sequence[Any]) -> Rows:
    """All items by each of the users, at the same times."""
    users, items = (x.split() if isinstance(x, str) else [*map(str, x)] for x in (users, items))
    return [(u, i, t) for u in users for i, t in zip(items, times, strict=True)]


def seconds(*times: str) -> list[int]:
    return np.array(times, "datetime64[s]").astype(int).tolist()


def days(clock: str = "00:00:00", month: str = "2019-10") -> list[int]:
    return seconds(*(f"{month}-{day:02}T{clock}" for day in range(9, 4, -1)))


def songs(users: Sequence[str], n: int, tracks: int, gap: int) -> Rows:
    """A song a minute, back in time; every so many one has no id."""
    last = seconds("2009-05-04T23:59:57")[0]
    heard = [k for k in range(n) if (k + 1) % gap]
    return [(u, f"track-{k % tracks}", last - 60 * k) for u in users for k in heard]


FIVE = "i0 i1 i2 i3 i4"
NUMBERED = each("u1 u2 u3", FIVE, range(100, 95, -1))
FIRST = [("u1", "a", 1), ("u1", "d", 4), ("u1", "a", 5), ("u1", "b", 6)]
TURN = [*zip(["u1"] * 4 + ["u2"] * 4, "abcdbcda", [40, 30, 20, 10, 1, 2, 3, 4], strict=True)]
PARENTS = [f"B0PARENT{k}" for k in range(5)]
REVIEWS = each("AE0 AE1 AE2", PARENTS, range(1588687728923, 1588687733923, 1000))
KUAIRAND = [
    each("0 1 2", "4 5 6", range(t + 4000, t + 7000, 1000)) for t in (1650091200000, 1650177600000)
]
SQUARE = ("user", "item", "cat", "name", "lat", "lon", "offset", "timestamp")
CHECKINS = [(str(470 + n % 5), f"{n % 7:024}", 1333476009 + 60 * n) for n in range(40)]
DROP = {"missing": "drop"}
WORDS = "NULL NaN None dash hive lt_na n_a na nan nat none null"
UUIDS = {"u1": "6f1c2d3e-4b5a-4c6d-8e7f-9a0b1c2d3e4f", "u2": "9e8d7c6b-5a49-4382-b716-0f1e2d3c4b5a"}
LISTENERS = [f"user_{n:06}" for n in (1, 2, 3)]
LASTFM = "07_lastfm1k/userid-timestamp-artid-artname-traid-traname.tsv"

# File or folder -> the interactions in order.
READ: dict[str, Rows] = {
    "02_netflix/training_set": [
        (f"1{k}", film, seconds(f"2005-0{film}-1{k}")[0]) for film in "1234" for k in (1, 2, 3)
    ],
    "03_steam/steam_reviews.json.gz": each(
        *("tester_a tester_b tester_c", "10 20 30 40 50"),
        seconds(*(f"2017-0{month}-07" for month in range(1, 6))),
    ),
    "05_foursquare/with_header_utf8.tsv": CHECKINS,
    "05_foursquare/dataset_TSMC2014_NYC.txt": CHECKINS,  # its name says what its columns are
    "07_lastfm1k/lastfm-dataset-1K.tar.gz": each(
        *("u1 u2", "t0 t1 t2 t3 t4"), seconds(*(f"2009-05-0{day}" for day in range(1, 6)))
    ),
    "09_kuairand": KUAIRAND[0] + KUAIRAND[1],
    "10_parquet/decimal_time.parquet": TURN,
    "10_parquet/spark_out.parquet": TURN,
    "10_parquet/float16_id.parquet": [(u[1], i, t) for u, i, t in TURN],
    "10_parquet/t4rec_lists.parquet": each("1", "1 2 3 4", [None] * 4)
    + each("2", "2 3 4 5", [None] * 4),
    "10_parquet/ts_ns_below_us.parquet": [
        (u, i, 1700000000000000000 + (t // 10 + 4 if t > 9 else t - 1)) for u, i, t in TURN
    ],
    "10_parquet/uuid_real_ext.parquet": [
        (UUIDS[u], i, t // 10 if t > 9 else t) for u, i, t in TURN
    ],
    **dict.fromkeys(
        (
            f"12_amazon2023/{name}"
            for name in (
                "All_Beauty.jsonl.gz",
                "all_beauty_flat.csv",
                "full-00000-of-00001.parquet",
            )
        ),
        REVIEWS,
    ),
    **{f"16_long_text/lines{n}.csv": each("1 2 3", FIVE, range(100, 105)) for n in (99, 150)},
    **{f"16_long_text/n{n}.csv": each("1 2", FIVE[:11], range(4)) for n in (99, 100, 101)},
    "17_userbehavior/UserBehavior.csv": each("1 2 3", range(22, 34), range(1511544092, 1511544104)),
    "18_dates/ctime.tsv": each("1 2 3", FIVE, days("18:00:09")),
    "18_dates/slashes_time.tsv": each("1 2 3", FIVE, days("10:11:12")),
    "18_dates/utc_word.tsv": each("1 2 3", FIVE, days()),
    "19_tables/date_and_hhmm.csv": each(
        "u1 u2 u3",
        FIVE,
        seconds(
            *("2024-01-10T09:00", "2024-01-09T23:00", "2024-01-08T10:00", "2024-01-07T11:30"),
            "2024-01-06T08:15",
        ),
    ),
    **dict.fromkeys(
        (
            f"19_tables/{name}"
            for name in (
                *("space_separated.csv", "semicolon.tsv", "excel_sep_line.csv", "comma.tsv"),
                *("comment_hash.csv", "generic.jsonl", "caret.csv", "ctrl_a.txt", "x.csv.GZ"),
                "x.csv.bz2",
            )
        ),
        NUMBERED,
    ),
}
# File, settings -> the interactions in order.
SETTINGS: list[tuple[str, dict[str, Any], Rows]] = [
    *((f"01_diginetica/missing_{word}.csv", DROP, FIRST) for word in WORDS.split()),
    (
        "01_diginetica/train-item-views.csv",
        DROP,
        each("77", "84 85 83 81", [seconds("2016-05-03")[0] + k for k in (28, 21, 14, 7)]),
    ),
    *((f"10_parquet/{name}_string_ids.parquet", DROP, TURN[4:]) for name in ("nan", "empty")),
    *((name, DROP, songs(LISTENERS, 12, 5, 6)) for name in (LASTFM, "07_lastfm1k/with_header.tsv")),
    (
        *("07_lastfm1k/ten_percent_empty.tsv", DROP),
        songs([f"user_{n}" for n in range(40)], 30, 9, 10),
    ),
    ("18_dates/german.tsv", {"time_format": "%d.%m.%Y"}, each("1 2 3", FIVE, days())),
    (
        *("18_dates/us_ampm.tsv", {"time_format": "%m/%d/%Y %I:%M:%S %p"}),
        each("1 2 3", FIVE, days("09:05:58", "2019-11")),
    ),
    ("05_foursquare/utf8_no_header.txt", {"names": SQUARE}, CHECKINS),
    (
        *("05_foursquare/dataset_TSMC2014_NYC.txt", {"names": SQUARE, "encoding": "latin-1"}),
        CHECKINS,
    ),
    ("19_tables/caret.csv", {"delimiter": "^"}, NUMBERED),
]
# File -> what is said of it.
REFUSED = {
    **{
        f"01_diginetica/missing_{word}.csv": "line 3: the column 'user_id' has no value"
        for word in WORDS.split()
    },
    "01_diginetica/train-item-views.csv": "line 2: the column 'userId' has no value",
    "05_foursquare/utf8_no_header.txt": "has 8 columns separated by 'tab' and no header",
    "07_lastfm1k/ten_percent_empty.tsv": "line 11: the column 'traid' has no value",
    "07_lastfm1k/with_header.tsv": "line 7: the column 'traid' has no value",
    LASTFM: "line 6: the column 'track_id'",
    "10_parquet/nan_string_ids.parquet": "row 1: the column 'user_id' has no value",
    "10_parquet/empty_string_ids.parquet": "row 1: the column 'user_id' has no value",
    "17_userbehavior/named.csv": "line 17: the time '-2134949234' in the column 'timestamp' is bef",
    "18_dates/german.tsv": "say how it is written with 'dataset.time_format=",
    "18_dates/us_ampm.tsv": "say how it is written with 'dataset.time_format=",
    "19_tables/negative_before_1970.csv": "line 2: the time '1960-01-01' in the column 'timestamp'",
}
# File -> what is said of it beside the result.
TOLD = {
    "12_amazon2023/All_Beauty.jsonl.gz": "the item is read from the column 'parent_asin', not from",
    "12_amazon2023/full-00000-of-00001.parquet": "the item is read from the column 'parent_asin'",
    "17_userbehavior/sec_and_ms.csv": "9 look like seconds and 9 look like milliseconds",
    "19_tables/mixed_float_ids.csv": "3 of the users are written in two ways",
}


def rows_of(path: Path, folder: Path, **settings: Any) -> Rows:
    copy = folder / path.name
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    data = read(copy, **settings)
    times = [None] * len(data) if data.timestamps is None else data.timestamps.tolist()
    ids = (data.user_ids[data.users], data.item_ids[data.items])
    return [*zip(*(map(str, x) for x in ids), times, strict=True)]


@pytest.mark.parametrize(
    ("name", "settings", "rows"), [*((n, {}, r) for n, r in READ.items()), *SETTINGS]
)
def test_read(name: str, settings: dict[str, Any], rows: Rows, tmp_path: Path) -> None:
    assert rows_of(CASES / name, tmp_path, **settings) == rows


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        rows_of(CASES / name, tmp_path)
    assert REFUSED[name] in str(error.value)


@pytest.mark.parametrize("name", TOLD)
def test_told(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bounds = (None, None)
    assert len(
        Custom("x", CASES / name, tmp_path, user_bounds=bounds, item_bounds=bounds).build().items
    )
    assert TOLD[name] in caplog.text
