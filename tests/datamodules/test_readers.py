"""Every reader on small raw files in the official formats gives the same interactions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sigma.datamodules.locate import search
from sigma.errors import UserError
from tests.datamodules import raw_files as raw
from tests.datamodules.reading import Rows, read

ROWS = raw.interactions()


SOURCES: dict[str, Callable[[Path], Path]] = {
    "ml_1m folder": lambda p: raw.ml_1m(p / "x", ROWS),
    "ml_1m zip": lambda p: raw.zipped(raw.ml_1m(p / "ml-1m", ROWS)),
    "ml_100k folder": lambda p: raw.ml_100k(p / "x", ROWS),
    "ml_100k file": lambda p: raw.ml_100k(p / "x", ROWS) / "u.data",
    "ml csv folder": lambda p: raw.ml_csv(p / "x", ROWS),
    "ml csv nested": lambda p: raw.ml_csv(p / "x" / "ml-32m", ROWS).parent,
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


HEAD = "user_id,item_id,timestamp\n"
NAMES = {"user": "who", "item": "what", "timestamp": "when"}
TYPED = "\t".join(f"{n}:token" for n in ("user_id", "item_id", "artist_id"))
WINDOWS = '\ufeff"user_id","item_id","timestamp"\r\n"a","b,c",1\r\n"a","d",2\r\n'
KUAIRAND = "user_id,video_id,date,hourmin,time_ms\n1,5,2022,100,3000\n1,6,2022,2300,1000\n"
BLANKS = "user_id, item_id, timestamp\n1, 2, 1970-01-02\n1, 3, 1970-01-03\n"
# Name and text of a file -> users, items and times in order.
TEXTS: dict[str, tuple[str, str, Any, Any, Any]] = {
    "a user a line": ("a.txt", "7 1 2 1\n\n9 2\n", "7 7 7 9", "1 2 1 2", None),
    "a pair a line": ("ml-1m.txt", "1 5\n1 3\n2 5\n1 9\n", "1 1 2 1", "5 3 5 9", None),
    "tabs, no numbers": ("a.txt", "u1\ti7\nu1\ti8\nu2\ti7\n", "u1 u1 u2", "i7 i8 i7", None),
    "a header": ("b.txt", "user_id\titem_id\nu1\ti8\nu2\ti7\n", "u1 u2", "i8 i7", None),
    "no times": ("a.csv", "user_id,item_id\nx,1\nx,0\n", "x x", "1 0", None),
    "mark, quotes, Windows": ("a.csv", WINDOWS, "a a", ["b,c", "d"], [1, 2]),
    "the most exact time": ("a.csv", KUAIRAND, "1 1", "5 6", [3000, 1000]),
    "blank lines above": ("a.csv", f"\n\n{HEAD}1,2,3\n1,3,1\n", "1 1", "2 3", [3, 1]),
    "old line ends": ("b.csv", (HEAD + "1,2,3\n1,3,1\n").replace("\n", "\r"), "1 1", "2 3", [3, 1]),
    "commas": ("a.tsv", "user_id\titem_id\ttimestamp\ta,b,c\n1\t2\t3\t4\n", "1", "2", [3]),
    "blanks before dates": ("a.csv", BLANKS, "1 1", [" 2", " 3"], [86400, 172800]),
    "MovieLens'": ("m.tsv", "userId\tmovieId\trating\ttimestamp\n1\t2\t3\t4\n", "1", "2", [4]),
}
CLOCKS = {  # columns and values of a time -> the times in seconds of that day
    "date,time": ("2020-01-02,10:00:00", "2020-01-02,9:30 AM", 36000, 34200),
    "event_date,event_time": ("20200102,1000", "20200102,930", 36000, 34200),
    "day,time": ("2020/01/02,93001", "2020/01/02,101500", 34201, 36900),
    "date,hour,minute,second": ("2020-01-02,10,5,59", "2020-01-02,9,0,1", 36359, 32401),
    "eventdate,timeframe": ("2020-01-02,36000000", "2020-01-02,7000", 36000, 7),
    "date": ("02/Jan/2020:10:00:00 +0000", "02/Jan/2020:11:00:00 +0200", 36000, 32400),
}
for columns, (a, b, *clock) in CLOCKS.items():
    table = f"user,item,{columns}\nu,i,{a}\nu,j,{b}\n"
    times = [1577923200 + second for second in clock]
    TEXTS[f"the time is {columns}"] = ("a.csv", table, "u u", "i j", times)
NAMELESS = ",user_id,item_id,timestamp\n0,u,i,5\n"
TEXTS["a column without a name"] = ("a.csv", NAMELESS, "u", "i", [5])
TEXTS["no rows of text in quotes"] = (
    "a.tsv",
    'user\titem\ttitle\nu\ti\t"Heroes" (Live)\n',
    "u",
    "i",
    None,
)
BIG = '{"user": 9007199254740993, "item": 18446744073709551617, "time": 1}\n'
TEXTS["all digits"] = ("a.json", BIG, "9007199254740993", "18446744073709551617", [1])
# The first thousand lines are of as many users, and still no histories of one item.
PAIRS = [(str(u), str(u % 7)) for u in [*range(1500)] * 2]
USERS, ITEMS = zip(*PAIRS, strict=True)
TEXTS["pairs by time"] = ("a.txt", "\n".join(map(" ".join, PAIRS)), USERS, ITEMS, None)
TIMES = [
    (["881250949.0", "881250948"], [881250949, 881250948]),
    (["1.5", "1.25"], [1_500_000, 1_250_000]),  # a fraction: all in microseconds
    (["2018-10-31", "2018-10-30"], [1540944000, 1540857600]),
    (["2018-10-31 12:00:00", "2018-10-31"], [1540987200, 1540944000]),
    (["2018-10-31T12:00:00Z", "2018-10-31T12:00:01Z"], [1540987200, 1540987201]),
    (["2018-10-31T12:00:00+02:00", "2018-10-31"], [1540980000, 1540944000]),
    (["2018-10-31 12:00:00.5", "2018-10-31"], [1540987200500000, 1540944000000000]),
    ([" 12 ", "13"], [12, 13]),
    (["1540987200000", "1540987200001"], [1540987200000, 1540987200001]),  # milliseconds
]
for values, numbers in TIMES:
    table = "user,item,time\n" + "".join(f"a,b,{value}\n" for value in values)
    TEXTS[f"times {values}"] = ("a.csv", table, "a a", "b b", numbers)


def rows_of(data: Rows) -> list[raw.Row]:
    """The numbers in raw ids such as B000000007, u7 or 7."""
    users, items = (
        [int("".join(c for c in str(i) if c.isdigit())) for i in ids]
        for ids in (data.user_ids[data.users], data.item_ids[data.items])
    )
    return list(map(raw.Row, users, items, data.timestamps.tolist()))


@pytest.mark.parametrize(("name", "text", "users", "items", "times"), TEXTS.values(), ids=TEXTS)
def test_text(name: str, text: str, users: Any, items: Any, times: Any, tmp_path: Path) -> None:
    data = read(raw.write(tmp_path / name, text))
    sides = ((data.user_ids, data.users, users), (data.item_ids, data.items, items))
    for ids, codes, expected in sides:
        expected = expected.split() if isinstance(expected, str) else list(expected)
        assert ids[codes].tolist() == expected
        assert ids.tolist() == list(dict.fromkeys(expected))  # codes by the first appearance
    assert (data.timestamps if times is None else data.timestamps.tolist()) == times


@pytest.mark.parametrize("source", SOURCES)
def test_reader_returns_the_rows_in_file_order(source: str, tmp_path: Path) -> None:
    data = read(SOURCES[source](tmp_path))
    assert rows_of(data) == ROWS
    assert data.users.dtype == data.items.dtype == np.int32
    assert data.timestamps.dtype == np.int64


NANOSECONDS = pa.array([5_000_000_000, 6_000_000_000], pa.timestamp("ns"))


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        *(("timestamp", pa.array(v), [5, 6]) for v in ([5.0, 6.0], ["5", "6"])),
        *(("timestamp", pa.array([5, 6], t), [5, 6]) for t in ("int32", pa.timestamp("s", "UTC"))),
        ("timestamp", pa.array(["5", "6"]).dictionary_encode(), [5, 6]),
        ("timestamp", NANOSECONDS, [5, 6]),
        *(("user_id", pa.array(ids), ids) for ids in ([7.0, 5.0, 7.0], [2**62, 1, 2**62])),
        *(("user_id", pa.array(["b", "a"], t), ["b", "a"]) for t in ("string", "large_string")),
        ("user_id", pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        ("user_id", pa.DictionaryArray.from_arrays([1, 0], ["a", "b"]), ["b", "a"]),
    ],
)
def test_types_of_parquet(
    column: str, values: pa.Array, expected: list[object], tmp_path: Path
) -> None:
    rows = [raw.Row(1, 1, 0)] * len(values)
    data = read(raw.parquet(tmp_path / "a.parquet", rows, **{column: values}))
    got = data.timestamps if column == "timestamp" else data.user_ids[data.users]
    assert got.tolist() == expected
    assert data.user_ids.tolist() == list(dict.fromkeys(data.user_ids[data.users].tolist()))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "7\t11\t5\t978300760\n7\t12\t5\t978300761\n"),
        ("b.csv", "1385212958,42,5,978300760\n1385212959,43,5,978300761\n"),  # no ASIN among them
        ("c.txt", "".join(f"{n // 9}\t{n}\t{n}\t{n}\t{n}\n" for n in range(90))),  # LFM-1b's events
    ],
)
def test_a_table_without_header_says_so(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no header"):
        read(raw.write(tmp_path / name, text))
    columns = {"user": text[0], "item": "11"}  # must not make a header of the first row
    if name != "c.txt":
        with pytest.raises(UserError, match="no header"):
            read(tmp_path / name, columns=columns)


@pytest.mark.parametrize("form", ["{} {} ", " {}  {}", "{}\t{}\t", "{} \t {}"])
def test_pairs_in_aligned_columns(form: str, tmp_path: Path) -> None:
    pairs = [("u1", "5"), ("u1", "3"), ("u2", "5"), ("u1", "9")]
    text = "".join(form.format(*pair) + "\n" for pair in pairs)
    path = raw.write(tmp_path / "a.txt", text)
    data = read(path)
    assert [*zip(data.user_ids[data.users], data.item_ids[data.items], strict=True)] == pairs
    raw.write(path, text + "u3 4 5\n")
    with pytest.raises(UserError, match=r"a.txt, line 5: expected 'user item', got 3 fields"):
        read(path)
    assert len(read(path, "skip").items) == 4


def test_columns_named_by_numbers(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"user": "0", "item": "1"}
    pq.write_table(pa.table({"0": ["a", "b"], "1": ["x", "y"]}), tmp_path / "a.parquet")
    data = read(tmp_path / "a.parquet", columns=columns)
    assert data.item_ids[data.items].tolist() == ["x", "y"]
    raw.write(tmp_path / "a.csv", "user_id,item_id\na,x\n")  # no column is called so
    with pytest.raises(UserError, match=r"has no column '0' for .*\.user; it has: user_id,"):
        read(tmp_path / "a.csv", columns=columns)


def test_amazon_reviews_of_2023(tmp_path: Path) -> None:
    text = "".join(
        f'{{"asin": "B1", "parent_asin": "{item}", "user_id": "AE", "timestamp": {time}}}\n'
        for item, time in (("B2", 1588687728923), ("B3", 1588687728922))
    )
    raw.write(tmp_path / "Games.jsonl", text)
    raw.write(tmp_path / "meta_Games.jsonl", '{"title": "Chess", "parent_asin": "B2"}\n')
    data = read(tmp_path)
    assert data.timestamps.tolist() == [1588687728923, 1588687728922]
    assert data.item_ids.tolist() == ["B2", "B3"]
    assert data.item_info.loc["B2", "title"] == "Chess"


def test_a_download_under_way_is_no_raw_file(tmp_path: Path) -> None:
    raw.write(tmp_path / "ratings_Beauty.csv.part", "A1,B")
    assert search(tmp_path, ("ratings_Beauty.csv*",)) == []


def test_titles_of_products_and_businesses(tmp_path: Path) -> None:
    raw.amazon_meta(tmp_path / "meta_Beauty.json.gz")
    data = read(raw.amazon_2014(tmp_path / "ratings_Beauty.csv", ROWS))
    assert data.item_info.loc[raw.asin(3), "title"] == "Thing 3"
    data = read(raw.yelp(tmp_path / "yelp", ROWS))
    assert data.item_info.loc["b3"].tolist() == ["Café 3", "Food, Bars"]


def test_columns_by_name_and_leading_zeros(tmp_path: Path) -> None:
    data = read(
        raw.write(tmp_path / "a.tsv", "when\twhat\twho\n5\t007\tx\n4\t7\tx\n"), columns=NAMES
    )
    assert (data.item_ids.tolist(), data.timestamps.tolist()) == (["007", "7"], [5, 4])
    fields = f"{TYPED}\ttimestamp:float\tfirst:float\n1\t2\t3\t4\t5\n"
    path = raw.write(tmp_path / "a.inter", fields)
    data = read(path, columns={"item": "artist_id", "timestamp": "first:float"})
    assert (data.item_ids.tolist(), data.timestamps.tolist()) == (["3"], [5])
    with pytest.raises(UserError, match=r"no column 'artist' for dataset\.columns\.item"):
        read(path, columns={"item": "artist"})


@pytest.mark.parametrize(
    ("where", "items"),
    [
        *(("event = 'buy'", "b c"), ("n > 2.7", "a b"), ("n > 2.7 AND event = 'buy'", "b")),
        *(("code = '007'", "a"), ("big = 9007199254740993", "a"), ("n > big", "c"), (" ", "a b c")),
        *(("nope = 1", ""), ("n", "a b c"), ("event", ""), ("n > 1; DROP TABLE raw", "")),
        *(("n > 1) --", ""), ("1 = (SELECT count(*) FROM read_text('/etc/passwd'))", "")),
    ],
)
def test_a_condition(where: str, items: str, tmp_path: Path) -> None:
    names = ["user", "item", "event", "n", "code", "big"]
    rows = [
        ["u", "a", "view", 3, "007", 9007199254740993],
        ["u", "b", "buy", 10, "7", 9007199254740992],
        ["u", "c", "buy", 2.5, "07", 1],
    ]
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    raw.write(tmp_path / "a.jsonl", "\n".join(lines))
    table = "\n".join(",".join(map(str, row)) for row in [names, *rows])
    for path in (
        raw.write(tmp_path / "a.csv", table),
        tmp_path / "a.jsonl",
        tmp_path / "a.parquet",
    ):
        if items:
            data = read(path, where=where)
            assert data.item_ids[data.items].tolist() == items.split()
        else:
            with pytest.raises(
                UserError, match=r"dataset\.where=.* is no condition on its columns"
            ):
                read(path, where=where)


def test_folders_that_tell_a_column(tmp_path: Path) -> None:
    for n in (10, 2):
        raw.write(tmp_path / "x" / f"user_id=0{n}" / "part-0.csv", f"item_id\n{n}\n")
    data = read(tmp_path / "x")
    assert data.user_ids.tolist() == ["02", "010"]  # part 2 comes before part 10
    assert data.item_ids.tolist() == ["2", "10"]


def test_a_time_not_recognised_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(raw.write(tmp_path / "a.csv", HEAD + "1,2,3\n"))
    assert not caplog.text
    read(raw.write(tmp_path / "b.csv", "user,item,moment\n1,5,3\n"))
    assert "none of its columns (user, item, moment) looks like a time" in caplog.text
