"""Bad files: each gets one sentence that says what is wrong, where, and what to do."""

import gzip
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from sigma.datamodules.locate import locate
from sigma.datamodules.preprocess import preprocess
from sigma.errors import UserError
from tests.datamodules import raw_files as raw
from tests.datamodules.reading import read

ROWS = raw.interactions(n=60)
CSV = "user_id,item_id,timestamp\n"
PACKED = gzip.compress(CSV.encode() + b"1,2,3\n")
DAMAGED = "is damaged or incomplete"
NOT_UTF8 = "the bytes are not UTF-8"
Make = Callable[[Path], Path]

# Case: the name of a file, what it holds, and what must be said about it.
CONTENTS: dict[str, tuple[str, str | bytes, str]] = {
    "wrong ending": ("a.xlsx", "x", "the ending '.xlsx' is not one of .csv"),
    "no ending": ("ratings", "x", "the ending '' is not one of .csv"),
    "empty csv": ("a.csv", "", "a.csv is empty"),
    "empty txt": ("a.txt", "", "a.txt is empty"),
    "empty json": ("a.json", "", "a.json is empty"),
    "only blank lines": ("a.txt", "\n\n", "a.txt is empty"),
    "header alone": ("a.csv", CSV, "holds no interactions"),
    "no user column": ("a.csv", "who,item_id\n1,2\n", "it has: who, item_id"),
    "no item column": ("a.csv", "user_id,what\n1,2\n", "name it with dataset.columns.item="),
    "too many fields": ("a.csv", CSV + "1,2,3\n\n1,2,3,4\n", "line 4: expected 3 fields"),
    "no such day": ("a.csv", CSV + "1,2,2018-10-31\n1,2,2018-02-30\n", "line 3: the time"),
    "dates and numbers": ("a.csv", CSV + "1,2,2018-10-31\n1,2,77\n", "line 3: the time"),
    "times of no kind": (
        *("a.csv", CSV + "1,2,07/14/2017\n1,3,07/15/2017\n"),
        "line 2: the time '07/14/2017' in the column 'timestamp' is neither a number",
    ),
    "no table": ("a.csv", "a,b\t" * 20_000 + "\n1,2\n", "names 20,001 columns, and no table"),
    "a name twice": ("a.csv", "user_id,item_id,user_id\n1,2,3\n", "several columns 'user"),
    "not UTF-8 header": ("a.csv", b"us\xe9r,item\n1,2\n", f"line 1: {NOT_UTF8}"),
    "binary as csv": ("a.csv", bytes(range(128, 256)) * 9, NOT_UTF8),
    "amazon: neither column is an item": ("a.csv", "a,b,5.0,1\nc,d,5.0,2\n", "and no header"),
    "amazon: two items": ("a.csv", "A000000001,B000000002,5.0,1\n", "cannot tell users from items"),
    "reviews: a list": ("a.json", "[1, 2]\n", "line 1: not a JSON object"),
    "reviews: first line no JSON": ("a.json", "hello\n", "line 1: not a JSON object"),
    "json of something else": ("a.json", '{"a": 1}\n', "looks like the user"),
    "recbole: no types": ("a.inter", "user_id\titem_id\n1\t2\n", "names its fields 'name:type'"),
    "recbole: samples": (
        *("a.inter", "user_id:token\titem_id_list:token_seq\titem_id:token\n1\t2 3\t4\n"),
        "holds the history of each sample",
    ),
    "recbole: no item": ("a.inter", "user_id:token\tx:float\n1\t2\n", "no column that looks"),
    "netflix: rows above any film": ("mv_1.txt", "1:\n1,2,x\n", "mv_1.txt, line 2: the time 'x'"),
    "text: no items": ("a.txt", "1 2 3\n2\n", "line 2: expected 'user item item"),
    "text: a user twice": ("a.txt", "1 2 3\n1 4\n", "line 2: user '1' stands on an earlier"),
    "text: a user again": ("ml-1m.txt", "1 5 3\n2 5 4 8\n1 9 3\n", "stands on an earlier line"),
    "text: not UTF-8": ("a.txt", b"1 2 3\n2 \xff 4\n", f"line 2: {NOT_UTF8}"),
    "a header in the middle": ("a.csv", "user,item\nu,i\nuser,item\n", "line 3: the header stands"),
    "atomic: a header in the middle": (
        *("a.inter", "user_id:token\titem_id:token\nu\ti\nuser_id:token\titem_id:token\n"),
        "line 3: the header stands here again",
    ),
    "quoted lines that look like rows": (
        *("a.csv", 'user,item,note\nu,i,"x\nv,j,y\nw,k,z"\n'),
        "line 2: a quoted field goes on below",
    ),
    "points between thousands": (
        *("a.csv", "user;item;time\nu;i;1.000\nu;j;999\n"),
        "line 2: the time '1.000' in the column 'time' has a point",
    ),
    "a number of the day beside a date": (
        *("a.csv", "user,item,date,time\nu,i,2020-01-01,86399\n"),
        "holds times of day without a date",
    ),
    "UTF-16 without a mark": ("a.csv", CSV.encode("utf-16-le"), f"line 1: {NOT_UTF8}"),
    "json: an object as an id": ("a.json", '{"user": {"id": 1}, "item": 1}\n', "is of type STRUCT"),
    "json: a flag as an id": ("a.json", '{"user": true, "item": 1}\n', "is of type BOOLEAN"),
    "json: a list among the ids": (
        *("a.json", '{"user": 1, "item": 1}\n{"user": 1, "item": [1, 2]}\n'),
        "line 1: the column 'item' has no value",
    ),
    "json: lists within lists": ("a.json", '{"user": 1, "items": [[1, 2]]}\n', "but several"),
    "json: a key lacks": (
        *("a.json", '{"user": 1, "events": [{"item": 1, "ts": 2}, {"item": 2}, {"ts": 3}]}\n'),
        "has no value",
    ),
    "json: keys that differ in case": (
        *("a.json", '{"user": 1, "User": 2, "item": 3}\n'),
        "several columns 'user'",
    ),
    "a list as text": ("a.csv", 'user,item\n1,"[1, 2]"\n', "but several"),
    "gzip that is none": ("a.csv.gz", b"user_id,item_id\n1,2\n", DAMAGED),
    "gzip with a wrong checksum": ("a.csv.gz", PACKED[:-8] + b"\0" * 8, DAMAGED),
    "zip that is none": ("ml-1m.zip", b"<html>", "not a whole zip archive"),
    "parquet that is none": ("a.parquet", b"user_id", "is not a readable Parquet file"),
}


def containing(name: str, content: str | bytes) -> Make:
    return lambda folder: raw.write(folder / name, content)


def cut(make: Make) -> Make:
    """The same file, only the beginning of it."""

    def damaged(folder: Path) -> Path:
        path = make(folder)
        return raw.write(path, path.read_bytes()[: path.stat().st_size * 6 // 10])

    return damaged


def parquet(**columns: pa.Array) -> Make:
    return lambda p: raw.parquet(p / "a.parquet", [raw.Row(1, 1, 1)] * 3, **columns)


def folder_of(*files: tuple[str, str]) -> Make:
    def make(folder: Path) -> Path:
        for name, text in files:
            raw.write(folder / "x" / name, text)
        return folder / "x"

    return make


def unsafe_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("../ratings.csv", "x")
    return folder / "a.zip"


def films(text: str) -> Make:
    return lambda p: raw.write(raw.ml_csv(p / "x", ROWS) / "movies.csv", text).parent


NAN = float("nan")
PICTURE = folder_of(("picture.png", "x"))
REVIEW = f"{raw.reviewer(1)},{raw.asin(1)},5.0,1\n"
NO_META = folder_of(("ratings_Beauty.csv", REVIEW), ("meta_Beauty.json", "nonsense\n"))
CASES: dict[str, tuple[Make, str]] = {
    **{case: (containing(*of), answer) for case, (*of, answer) in CONTENTS.items()},
    "no such path": (lambda p: p / "nothing.csv", "does not exist; check the path"),
    "empty folder": (lambda p: p, "no known raw file (such as *.inter, ratings.dat, u.data)"),
    "folder of something else": (PICTURE, "it holds: picture.png"),
    "a part without times": (
        folder_of(("part-1.csv", CSV + "1,2,3\n"), ("part-2.csv", "user,item\n1,2\n")),
        "part-2.csv has no times, other than the files before it",
    ),
    "several tables": (folder_of(("a.csv", CSV), ("b.csv", CSV)), "could be meant: a.csv, b.csv"),
    "films without titles": (films("movieId,price\n1,x\n"), "looks like the title"),
    "films torn": (films('movieId,title\n1,"x\n2,y\n'), "not an item's record"),
    "meta: not records": (NO_META, "meta_Beauty.json, line 1: not a JSON"),
    "gzip cut off": (cut(lambda p: raw.amazon_2014(p / "ratings_Beauty.csv.gz", ROWS)), DAMAGED),
    "gzip json cut off": (cut(lambda p: raw.amazon_reviews(p / "r.json.gz", ROWS)), DAMAGED),
    "zip cut off": (cut(lambda p: raw.zipped(raw.ml_1m(p / "x", ROWS))), "not a whole zip archive"),
    "tar.gz cut off": (
        cut(lambda p: raw.zipped(raw.kuairand(p / "x", "pure", ROWS), "gztar")),
        "not a whole gz archive",
    ),
    "zip of something else": (lambda p: raw.zipped(PICTURE(p)), "no known raw file; unpack"),
    "zip that reaches outside": (unsafe_zip, "no known raw file; unpack it"),
    "parquet cut off": (cut(parquet()), "is not a readable Parquet file"),
    "parquet: no user column": (parquet(user_id=None), "no column that looks like the user"),
    "parquet: missing id": (parquet(user_id=pa.array([1, None, 2])), "row 2: the column 'user_id'"),
    "parquet: NaN id": (parquet(item_id=pa.array([1.0, NAN, 2.0])), "row 2: the column"),
    "parquet: id is a fraction": (parquet(item_id=pa.array([1.0, 2.5, 2.0])), "row 2: the id 2.5"),
    "parquet: ids too large": (parquet(user_id=pa.array([1e19, 2.0, 2.0])), "row 1: the id 1e+19"),
    "parquet: ids not exact": (parquet(user_id=pa.array([2.0**53] * 3)), "DOUBLE holds exactly"),
    "parquet: ids are dates": (parquet(item_id=pa.array([1, 2, 3], "date32")), "is of type DATE"),
    "parquet: missing time": (parquet(timestamp=pa.array([1, 2, None])), "row 3: the time"),
    "parquet: times are flags": (parquet(timestamp=pa.array([True] * 3)), "is of type BOOLEAN"),
    "parquet: NaN time": (parquet(timestamp=pa.array([1.0, NAN, 2.0])), "row 2: the time"),
}

# The first line, which tells the format, and files beside the interactions.
NO_LINE_TO_LEAVE_OUT = {
    *("not UTF-8 header", "UTF-16", "binary as csv", "gzip that is none", "meta: not records"),
    *("reviews: first line no JSON", "reviews: a list", "films torn"),
    *("quoted lines that look like rows", "UTF-16 without a mark"),
}


def message(make: Make, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        preprocess(locate(make(folder), folder / "unpacked").read())
    return str(error.value)


@pytest.mark.parametrize("case", CASES)
def test_bad_file_gets_one_sentence(case: str, tmp_path: Path) -> None:
    make, expected = CASES[case]
    answer = message(make, tmp_path)
    assert expected in answer
    assert "\n" not in answer
    assert answer.endswith((".", ")"))
    malformed_text = re.search(r"\.(csv|txt|json|inter|data|dat), line \d+: ", answer)
    advice = re.search(r", or leave such lines out with dataset\.m[a-z]+=[a-z]+\.$", answer)
    assert bool(advice) == (malformed_text is not None and case not in NO_LINE_TO_LEAVE_OUT)


def test_one_column_for_users_and_items(tmp_path: Path) -> None:
    path = raw.csv_table(tmp_path / "a.csv", ROWS)
    with pytest.raises(UserError, match="name the same column"):
        read(path, columns={"user": "item_id"})


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root, and Windows, may read everything"
)
def test_file_without_permission(tmp_path: Path) -> None:
    path = raw.csv_table(tmp_path / "a.csv", ROWS)
    path.chmod(0)
    assert "cannot be read" in message(lambda p: path, tmp_path)


def test_zip_with_a_password(tmp_path: Path) -> None:
    path = raw.zipped(raw.ml_1m(tmp_path / "ml-1m", ROWS))
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # of every member, and in the list
        for place in re.finditer(re.escape(mark), bytes(data)):
            data[place.start() + flags] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="locked by a password"):
        locate(path, tmp_path / "unpacked")
    assert not list((tmp_path / "unpacked").iterdir())
