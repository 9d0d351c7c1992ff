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

ROWS = raw.interactions(n=60)
CSV = "user_id,item_id,timestamp\n"
Case = tuple[Callable[[Path], Path], str]


def csv(text: str, name: str = "a.csv") -> Callable[[Path], Path]:
    return lambda p: raw.write(p / name, text)


def binary(data: bytes, name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def cut(make: Callable[[Path], Path], keep: float = 0.6) -> Callable[[Path], Path]:
    """The same file, only the beginning of it."""

    def damaged(folder: Path) -> Path:
        path = make(folder)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        return path

    return damaged


def parquet(**columns: pa.Array) -> Callable[[Path], Path]:
    return lambda p: raw.parquet(p / "a.parquet", [raw.Row(1, 1, 1)] * 3, **columns)


def several(folder: Path) -> Path:
    raw.csv_table(folder / "a.csv", ROWS)
    return raw.csv_table(folder / "b.csv", ROWS).parent


def unsafe_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("../ratings.csv", "x")
    return folder / "a.zip"


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def other_folder(folder: Path) -> Path:
    return raw.write(folder / "x" / "picture.png", "x").parent


def films(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = raw.ml_csv(folder / "x", ROWS)
        raw.write(path / "movies.csv", text)
        return path

    return make


REVIEW = '{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 5}\n'
YELP = '{"user_id": "u", "business_id": "b", "date": "2018-10-31 12:00:00"}\n'

CASES: dict[str, Case] = {
    "no such path": (lambda p: p / "nothing.csv", "does not exist; check the path"),
    "empty folder": (
        empty_folder,
        "holds no known raw file (such as *.inter, ratings.dat, u.data)",
    ),
    "folder of something else": (other_folder, "it holds: picture.png"),
    "folder of several tables": (several, "several files that could be meant: a.csv, b.csv"),
    "wrong ending": (csv("x", "a.xlsx"), "the ending '.xlsx' is not one of .csv"),
    "no ending": (csv("x", "ratings"), "the ending '' is not one of .csv"),
    "empty csv": (csv(""), "a.csv is empty"),
    "empty txt": (csv("", "a.txt"), "a.txt is empty"),
    "empty json": (csv("", "a.json"), "a.json is empty"),
    "only blank lines": (csv("\n\n", "a.txt"), "a.txt is empty"),
    "header alone": (csv(CSV), "holds no interactions"),
    "no user column": (csv("who,item_id\n1,2\n"), "it has: who, item_id"),
    "no item column": (csv("user_id,what\n1,2\n"), "name it with dataset.columns.item="),
    "too few fields": (csv(CSV + "1,2,3\n1,2\n"), "line 3: expected 3 fields separated by ','"),
    "too many fields": (csv(CSV + "1,2,3\n\n1,2,3,4\n"), "line 4: expected 3 fields"),
    "missing user": (csv(CSV + "1,2,3\n,2,3\n"), "line 3: the column 'user_id' has no value"),
    "NaN item": (csv(CSV + "1,2,3\n1,NaN,3\n"), "line 3: the column 'item_id' has no value"),
    "missing time": (csv(CSV + "1,2,\n"), "line 2: the time in the column 'timestamp' is missing"),
    "garbled time": (
        csv(CSV + "1,2,3\n1,2,soon\n"),
        "line 3: the time 'soon' in the column 'timestamp' is not a number",
    ),
    "infinite time": (
        csv(CSV + "1,2,3\n1,2,inf\n"),
        "the time 'inf' in the column 'timestamp' is not a number",
    ),
    "time too large": (
        csv(CSV + "1,2,3\n1,2,1e30\n"),
        "the time '1e30' in the column 'timestamp' is not a number",
    ),
    "negative time": (
        csv(CSV + "1,2,3\n1,2,-4\n"),
        "the time '-4' in the column 'timestamp' is before 1970",
    ),
    "impossible date": (csv(CSV + "1,2,2018-10-31\n1,2,2018-02-30\n"), "line 3: the time"),
    "dates and numbers": (csv(CSV + "1,2,2018-10-31\n1,2,77\n"), "line 3: the time"),
    "several columns of a name": (csv("user_id,item_id,user_id\n1,2,3\n"), "several columns 'user"),
    "not UTF-8": (binary(CSV.encode() + b"1,caf\xe9,3\n", "a.csv"), "line 2: the bytes are not"),
    "not UTF-8 header": (binary(b"us\xe9r,item\n1,2\n", "a.csv"), "line 1: the bytes are not"),
    "UTF-16": (binary((CSV + "1,2,3\n").encode("utf-16"), "a.csv"), "the bytes are not UTF-8"),
    "binary as csv": (binary(bytes(range(128, 256)) * 9, "a.csv"), "the bytes are not UTF-8"),
    "dat: too few fields": (
        csv("1::2::3::4\n1::2::3\n", "ratings.dat"),
        "line 2: expected 4 fields separated by '::', got 3",
    ),
    "dat: garbled time": (csv("1::2::3::4\n1::2::3::x\n", "ratings.dat"), "line 2: the time"),
    "u.data: too many fields": (csv("1\t2\t3\t4\n1\t2\t3\t4\t5\n", "u.data"), "separated by 'tab'"),
    "films without titles": (films("movieId,name\n1,x\n"), "but movieId and title are needed"),
    "films torn": (films('movieId,title\n1,"x\n2,y\n'), "not a list of films"),
    "amazon: neither column is an item": (csv("a,b,5.0,1\nc,d,5.0,2\n"), "has no header"),
    "amazon: both columns look like items": (
        csv("A000000001,B000000002,5.0,1\n"),
        "cannot tell users from items",
    ),
    "amazon: a line torn": (
        lambda p: raw.write(p / "r.csv", f"{raw.reviewer(1)},{raw.asin(1)},5.0,1\nA1,B\n"),
        "line 2: expected 4 fields",
    ),
    "reviews: a line torn": (csv(REVIEW + '{"asin": \n', "a.json"), "line 2: not a JSON object"),
    "reviews: a list": (csv("[1, 2]\n", "a.json"), "but this file has 1, 2"),
    "reviews: first line no JSON": (csv("hello\n", "a.json"), "line 1: not a JSON object"),
    "reviews: no asin": (
        csv(REVIEW + '{"reviewerID": "A", "unixReviewTime": 5}\n', "a.json"),
        "line 2: the column 'asin' has no value",
    ),
    "reviews: time is text": (
        csv(REVIEW + REVIEW.replace("5}", '"5"}'), "a.json"),
        "the field 'unixReviewTime' should be a whole number, got \"5\"",
    ),
    "reviews: id is a number": (
        csv(REVIEW + REVIEW.replace('"A1"', "7"), "a.json"),
        "line 2: the field 'reviewerID' should be text, got 7",
    ),
    "reviews: not UTF-8": (
        binary(REVIEW.encode() + REVIEW.replace("A1", "é").encode("latin-1"), "a.json"),
        "line 2: the bytes are not UTF-8",
    ),
    "json of something else": (csv('{"a": 1}\n', "a.json"), "but this file has a; convert it"),
    "yelp: garbled date": (csv(YELP + YELP.replace("2018-", "May "), "a.json"), "line 2: the time"),
    "meta: not records": (
        lambda p: raw.amazon_2014(
            raw.write(p / "meta_Beauty.json", "nonsense\n").with_name("ratings_Beauty.csv"), ROWS
        ),
        "meta_Beauty.json, line 1: not a product's record",
    ),
    "recbole: no types": (
        csv("user_id\titem_id\n1\t2\n", "a.inter"),
        "names its fields 'name:type'",
    ),
    "recbole: sequences": (
        csv("user_id:token\titem_id:token_seq\n1\t2 3\n", "a.inter"),
        "holds sequences",
    ),
    "recbole: no item": (csv("user_id:token\tx:float\n1\t2\n", "a.inter"), "no column that looks"),
    "text: a user without items": (csv("1 2 3\n2\n", "a.txt"), "line 2: expected 'user item item"),
    "text: a user twice": (csv("1 2 3\n1 4\n", "a.txt"), "line 2: user '1' stands on an earlier"),
    "text: not UTF-8": (binary(b"1 2 3\n2 \xff 4\n", "a.txt"), "line 2: the bytes are not UTF-8"),
    "gzip cut off": (
        cut(lambda p: raw.amazon_2014(p / "ratings_Beauty.csv.gz", ROWS)),
        "is damaged or incomplete",
    ),
    "gzip that is none": (binary(b"user_id,item_id\n1,2\n", "a.csv.gz"), "damaged or incomplete"),
    "gzip json cut off": (
        cut(lambda p: raw.amazon_reviews(p / "r.json.gz", ROWS)),
        "is damaged or incomplete",
    ),
    "gzip with a wrong checksum": (
        binary(gzip.compress(CSV.encode() + b"1,2,3\n")[:-8] + b"\0" * 8, "a.csv.gz"),
        "is damaged or incomplete",
    ),
    "zip cut off": (cut(lambda p: raw.zipped(raw.ml_1m(p / "x", ROWS))), "not a whole zip archive"),
    "zip that is none": (binary(b"<html>", "ml-1m.zip"), "not a whole zip archive"),
    "zip of something else": (
        lambda p: raw.zipped(other_folder(p)),
        "holds no known raw file; unpack it",
    ),
    "zip that reaches outside": (unsafe_zip, "holds the unsafe path '../ratings.csv'"),
    "parquet cut off": (cut(parquet()), "is not a readable Parquet file"),
    "parquet that is none": (binary(b"user_id", "a.parquet"), "is not a readable Parquet file"),
    "parquet: no user column": (parquet(user_id=None), "no column that looks like the user"),
    "parquet: missing id": (
        parquet(user_id=pa.array([1, None, 2])),
        "row 2: the column 'user_id' has no value",
    ),
    "parquet: NaN id": (parquet(item_id=pa.array([1.0, float("nan"), 2.0])), "row 2: the column"),
    "parquet: id is a fraction": (
        parquet(item_id=pa.array([1.0, 2.5, 2.0])),
        "row 2: the id 2.5 in the column 'item_id' is not a whole number",
    ),
    "parquet: ids are lists": (parquet(item_id=pa.array([[1], [2], [3]])), "is of type list"),
    "parquet: missing time": (parquet(timestamp=pa.array([1, 2, None])), "row 3: the time"),
    "parquet: times are flags": (parquet(timestamp=pa.array([True] * 3)), "is of type bool"),
    "parquet: NaN time": (parquet(timestamp=pa.array([1.0, float("nan"), 2.0])), "row 2: the time"),
}


SKIP = "dataset.malformed=skip"
# The first line, which tells the format, and files beside the interactions.
NO_LINE_TO_LEAVE_OUT = {
    "not UTF-8 header",
    "UTF-16",
    "binary as csv",
    "gzip that is none",
    "reviews: first line no JSON",
    "meta: not records",
}


def message(make: Callable[[Path], Path], folder: Path) -> str:
    with pytest.raises(UserError) as error:
        preprocess(locate(make(folder), folder / "unpacked").read())
    return str(error.value)


@pytest.mark.parametrize("case", CASES)
def test_bad_file_gets_one_sentence(case: str, tmp_path: Path) -> None:
    make, expected = CASES[case]
    told = message(make, tmp_path)
    assert expected in told
    assert "\n" not in told
    assert told.endswith((".", ")"))
    malformed_text = re.search(r"\.(csv|txt|json|inter|data|dat), line \d+: ", told)
    assert (f", or leave such lines out with {SKIP}." in told) == (
        malformed_text is not None and case not in NO_LINE_TO_LEAVE_OUT
    )


def test_wanted_column_that_is_missing(tmp_path: Path) -> None:
    path = raw.csv_table(tmp_path / "a.csv", ROWS)
    with pytest.raises(UserError) as error:
        locate(path, tmp_path, columns={"user": "who"}).read({"user": "who"})
    assert str(error.value) == (
        f"{path} has no column 'who' for dataset.columns.user; it has: user_id, item_id, timestamp."
    )


def test_same_column_twice(tmp_path: Path) -> None:
    columns = {"user": "item_id"}
    path = raw.csv_table(tmp_path / "a.csv", ROWS)
    with pytest.raises(UserError, match="name the same column"):
        locate(path, tmp_path, columns=columns).read(columns)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root, and Windows, may read everything"
)
def test_file_without_permission(tmp_path: Path) -> None:
    path = raw.csv_table(tmp_path / "a.csv", ROWS)
    path.chmod(0)
    assert "cannot be read" in message(lambda p: path, tmp_path)


def test_zip_with_a_password(tmp_path: Path) -> None:
    path = raw.zipped(raw.ml_1m(tmp_path / "ml-1m", ROWS))
    data = path.read_bytes()
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # of every member, and in the list
        parts = data.split(mark)
        data = mark.join(
            [
                parts[0],
                *(p[: flags - 4] + bytes([p[flags - 4] | 1]) + p[flags - 3 :] for p in parts[1:]),
            ]
        )
    path.write_bytes(data)
    with pytest.raises(UserError, match="locked by a password"):
        locate(path, tmp_path / "unpacked")
    assert not list((tmp_path / "unpacked").iterdir())
