"""``malformed=skip``: malformed lines are left out and counted, up to a limit."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from sigma.datamodules.readers.text import open_raw
from sigma.datamodules.sets.custom import Custom
from sigma.errors import UserError
from tests.datamodules import raw_files as raw
from tests.datamodules import reading
from tests.datamodules.reading import Rows, same

ROWS = raw.interactions(n=1500)
AT = 522  # the first line that gets in between
REVIEW = {"reviewerID": "A1", "asin": "B1", "unixReviewTime": 5}
YELP = {"user_id": "u", "business_id": "b", "date": "2018-10-31 12:00:00"}

MAKE: dict[str, Callable[[Path], Path]] = {
    "csv": lambda p: raw.csv_table(p / "a.csv", ROWS),
    "csv.gz": lambda p: raw.csv_table(p / "a.csv.gz", ROWS),
    "movielens csv": lambda p: raw.ml_csv(p, ROWS) / "ratings.csv",
    "dat": lambda p: raw.ml_1m(p, ROWS) / "ratings.dat",
    "u.data": lambda p: raw.ml_100k(p, ROWS) / "u.data",
    "inter": lambda p: raw.recbole(p, "a", ROWS) / "a.inter",
    "amazon": lambda p: raw.amazon_2014(p / "ratings_Beauty.csv", ROWS),
    "reviews": lambda p: raw.amazon_reviews(p / "a.json", ROWS),
    "reviews.gz": lambda p: raw.amazon_reviews(p / "a.json.gz", ROWS),
    "yelp": lambda p: raw.yelp(p, ROWS) / "yelp_academic_dataset_review.json",
    "netflix": lambda p: raw.netflix(p, ROWS) / "combined_data_1.txt",
    "lfm_1b": lambda p: raw.lfm_1b(p / "LFM-1b_LEs.txt", ROWS),
    "tmall": lambda p: raw.tmall(p / "user_log_format1.csv", ROWS),
}
UTF8 = "the bytes are not UTF-8 text"
HTTP = "https://files.grouplens.org/datasets/movielens/ml-latest-small1"
JUNK: list[tuple[str, str | bytes, str]] = [
    ("csv", "1,2", "expected 3 fields separated by ',', got 2"),
    ("csv", "1,2,3,4", "expected 3 fields separated by ',', got 4"),
    ("csv", "  ", "expected 3 fields separated by ',', got 1"),
    ("csv", ",2,3", "the column 'user_id' has no value"),
    ("csv", "1,NaN,3", "the column 'item_id' has no value"),
    ("csv", "1,2,", "the time in the column 'timestamp' is missing"),
    *(
        ("csv", f"1,2,{time}", f"the time '{time}' in the column 'timestamp' is")
        for time in ("soon", "-4", "inf", "1e30", "2018-10-31")
    ),
    ("csv", b"1,caf\xe9,3", UTF8),
    ("csv", b"\xff\xfe", UTF8),
    ("csv", '1,"2,3', "a quote stands out of place in the column 'item_id'"),
    ("csv", '"1"",2,3', "a quote stands out of place in the column 'user_id'"),
    ("csv", '1,2,3,"4', "expected 3 fields separated by ',', got 4"),
    ("csv.gz", "1,2", "got 2"),
    ("movielens csv", f"5,39,3.0,84743496 {HTTP}", f"the time '84743496 {HTTP[:30]}"),
    ("dat", "1::2::3", "expected 4 fields separated by '::', got 3"),
    ("dat", "1::2::3::x", "the time 'x'"),
    ("u.data", "1\t2\t3\t4\t5", "expected 4 fields separated by 'tab', got 5"),
    ("inter", "1\t2\t3\tx", "the time 'x' in the column 'timestamp'"),
    ("inter", "1\t2", "got 2"),
    ("amazon", "A1,B", "expected 4 fields"),
    ("reviews", '{"asin": ', "not a JSON object"),
    ("reviews", "[1]", "not a JSON object"),
    ("reviews", "7", "not a JSON object"),
    ("reviews", json.dumps(REVIEW | {"asin": None}), "the column 'asin' has no value"),
    *(
        ("reviews", json.dumps(REVIEW | {"unixReviewTime": time}), "the time '")
        for time in ("soon", True, 10**30)
    ),
    ("reviews", json.dumps(REVIEW | {"unixReviewTime": -5}), "the time"),
    ("reviews.gz", json.dumps(REVIEW).replace("A1", "é").encode("latin-1"), UTF8),
    ("yelp", json.dumps(YELP | {"date": "May 4"}), "the time 'May 4' in the column"),
    ("netflix", "12,5", "expected 3 fields separated by ',', got 2"),
    ("netflix", "12,5,2005-13-01", "the time '2005-13-01' in the column 'date'"),
    ("netflix", ",5,2005-01-01", "the column 'user' has no value"),
    ("lfm_1b", "1\t2\t3\t4", "expected 5 fields separated by 'tab', got 4"),
    ("lfm_1b", "1\t2\t3\t4\tx", "the time 'x' in the column 'timestamp'"),
    ("tmall", "1,2,3,4,5,1111", "expected 7 fields separated by ',', got 6"),
    ("tmall", "1,,3,4,5,1111,0", "the column 'item_id' has no value"),
]


def read(path: Path, malformed: str = "skip") -> Rows:
    return reading.read(path, malformed)


def insert(path: Path, junk: list[str | bytes], at: int = AT) -> None:
    """Put lines into a file, the first as line ``at``, the others a few lines apart."""
    with open_raw(path) as file:
        lines = file.read().splitlines(keepends=True)
    for k, line in enumerate(junk):
        lines.insert(at - 1 + 3 * k, (line if isinstance(line, bytes) else line.encode()) + b"\n")
    content = b"".join(lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("source", MAKE)
def test_clean_file(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = MAKE[source](tmp_path)
    monkeypatch.setattr("sigma.datamodules.readers.read.row_faults", None)  # slower
    assert same(read(path), read(path, "error"))
    assert read(path).skipped is None


@pytest.mark.parametrize(("source", "junk", "reason"), JUNK)
def test_malformed_line_is_left_out_alone(
    source: str, junk: str | bytes, reason: str, tmp_path: Path
) -> None:
    path = MAKE[source](tmp_path)
    clean = read(path)
    insert(path, [junk])
    with pytest.raises(UserError) as error:
        read(path, "error")
    assert f"{path.name}, line {AT}: " in str(error.value)
    missing = "has no value" in reason or "is missing" in reason
    way = "dataset.missing=drop" if missing else "dataset.malformed=skip"
    assert str(error.value).endswith(f", or leave such lines out with {way}.")
    if missing:
        assert same(reading.read(path, missing="drop"), clean)
    data = read(path)
    assert same(data, clean)
    with open_raw(path) as file:
        count = len(file.readlines())
    skipped = data.skipped
    assert (skipped.lines, skipped.of, skipped.first) == (1, count, AT)
    assert reason in skipped.reason
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("source", "first", "junk"),
    [
        ("csv", 2, ["1,2,x", "1", b"\xff,1,1", '1,2,3,"4', ",2,3", '"1"",2,3', "1,2,2018-10-31"]),
        ("dat", 1, ["1::2::3", "1::2::3::x"]),
        ("reviews", 2, ['{"asin": ', "[1]", json.dumps(REVIEW | {"asin": None})]),
    ],
)
def test_lines_of_several_kinds_the_first_and_the_last_among_them(
    source: str, first: int, junk: list[str | bytes], tmp_path: Path
) -> None:
    path = MAKE[source](tmp_path)
    clean = read(path)
    insert(path, junk, first)
    path.write_bytes(path.read_bytes() + junk[0].encode())  # without a line end, as if cut off
    data = read(path)
    assert same(data, clean)
    assert (data.skipped.lines, data.skipped.first) == (len(junk) + 1, first)


def test_what_no_one_reads_may_be_of_any_kind(tmp_path: Path) -> None:
    """A column of text in another encoding, with quotes and line ends, costs no row."""
    text = b"user_id,item_id,text\n" + b'1,2,"caf\xe9\nan ""x"", y"\n3,4,5\xe9\n' * 30
    path = raw.write(tmp_path / "a.csv", text)
    clean = read(path, "error")
    data = read(raw.write(path, text + b'1,2\n5,6,"never closed\n7,8,9\n'))
    assert (data.skipped.lines, data.skipped.first) == (3, 92)
    assert same(data, clean)  # a quote that is never closed takes the rest along, and it is told


def test_stray_quotes_in_a_title_cost_no_row(tmp_path: Path) -> None:
    """Nothing fails here: between two of them whole lines would be taken for one title."""
    lines = ['u1\ti1\t5\t"abc', "u2\ti2\t6\tplain", 'u3\ti3\t7\t"def', 'u4\ti4\t8\t"g" h']
    text = "user_id\titem_id\ttimestamp\ttitle\n" + "\n".join(lines) + "\n"
    data = read(raw.write(tmp_path / "a.tsv", text), "error")
    assert data.user_ids.tolist() == ["u1", "u2", "u3", "u4"]
    assert (data.timestamps.tolist(), data.skipped) == ([5, 6, 7, 8], None)
    # In an id a quote may have taken something along; that row alone is refused.
    stray = raw.write(tmp_path / "b.tsv", text + '"u5\ti5\t9\tx\nu6\ti6\t9\ty\n')
    with pytest.raises(UserError, match="line 6: a quote stands out of place in the column 'user_"):
        read(stray, "error")
    assert read(stray).user_ids.tolist() == ["u1", "u2", "u3", "u4", "u6"]


def test_quoted_line_ends_over_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f'u{n % 7},i{n},{n},"first\n\nsecond, {n}\n"' for n in range(200)]
    text = "user_id,item_id,timestamp,text\n" + "\n".join(rows) + "\n"
    data = read(raw.write(tmp_path / "a.csv", text), "error")
    assert data.item_ids.tolist() == [f"i{n}" for n in range(200)]
    assert data.timestamps.tolist() == list(range(200))


def test_lines_of_several_files_are_told_by_their_file(tmp_path: Path) -> None:
    folder = raw.netflix(tmp_path, ROWS)
    clean = read(folder)
    assert len(clean) == len(ROWS)
    insert(folder / "combined_data_2.txt", ["1,2"], 40)
    with pytest.raises(UserError, match=r"combined_data_2.txt, line 40: expected 3 fields"):
        read(folder, "error")
    data = read(folder)
    assert same(data, clean)
    assert (data.skipped.lines, data.skipped.first) == (1, 40)
    assert data.skipped.file == "combined_data_2.txt"


def test_headings_by_chunks_and_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a chunk ends, with blank lines and Windows' line ends, and without the last one."""
    expected = read(raw.netflix(tmp_path / "a", ROWS) / "combined_data_1.txt")
    text = (tmp_path / "a" / "combined_data_1.txt").read_text()
    loose = text.replace("\n2:", "\n\n2:").replace("\n", "\r\n").rstrip()
    path = raw.write(tmp_path / "b" / "combined_data_1.txt", loose)
    for size in (1, 7, 64, 1 << 20):
        monkeypatch.setattr("sigma.datamodules.readers.text._CHUNK", size)
        assert same(read(path), expected)
        assert same(read(tmp_path / "a" / "combined_data_1.txt"), expected)


def test_row_over_several_lines_is_left_out_whole(tmp_path: Path) -> None:
    text = 'user,item,time,text\n1,2,x,"a\n1,2,3,b\nc"\n1,2,3,d\n'
    data = read(raw.write(tmp_path / "a.csv", text))
    assert len(data) == 1
    assert (data.skipped.lines, data.skipped.of, data.skipped.first) == (1, 5, 2)


def test_sequence_text(tmp_path: Path) -> None:
    path = raw.write(tmp_path / "a.txt", b"1 2 3\n2\n3 \xff\n1 9\n4 2")
    with pytest.raises(UserError, match=r"line 2: .*, or leave such lines out with dataset\.malf"):
        read(path, "error")
    data = read(path)
    assert (data.user_ids.tolist(), data.users.tolist()) == (["1", "4"], [0, 0, 1])
    assert data.item_ids.tolist() == ["2", "3"]
    assert (data.skipped.lines, data.skipped.of, data.skipped.first) == (3, 5, 2)
    assert "got only '2'" in data.skipped.reason


def test_rows_of_parquet(tmp_path: Path) -> None:
    path = raw.parquet(tmp_path / "a.parquet", ROWS[:3], timestamp=pa.array([1, None, 3]))
    with pytest.raises(UserError, match="row 2: the time in the column 'timestamp' is missing"):
        read(path, "error")
    data = reading.read(path, missing="drop")
    assert (data.timestamps.tolist(), data.skipped.lines, data.skipped.first) == ([1, 3], 1, 2)


@pytest.mark.parametrize(("lines", "limit"), [(40, 10), (1000, 10), (3000, 30)])
@pytest.mark.parametrize(
    ("name", "head", "good", "bad"),
    [("a.csv", "user,item,time\n", "{0},2,{0}\n", "1,2,x\n"), ("a.txt", "", "{0} 2\n", "7\n")],
)
def test_too_many_are_refused(
    lines: int, limit: int, name: str, head: str, good: str, bad: str, tmp_path: Path
) -> None:
    """Up to 10 lines or 1 % are left out, one more is refused."""
    rows = [good.format(k) for k in range(lines - limit - bool(head))]
    path = raw.write(tmp_path / name, "".join([head, *rows[:5], bad * limit, *rows[5:]]))
    assert read(path).skipped.lines == limit
    raw.write(path, "".join([head, *rows[:5], bad * (limit + 1), *rows[5:-1]]))
    with pytest.raises(UserError) as error:
        read(path)
    assert f"more than {limit} of its {lines:,} lines are malformed" in str(error.value)
    assert f"the first is line {6 + bool(head)}: " in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_but_malformed_lines(tmp_path: Path) -> None:
    path = raw.write(tmp_path / "a.csv", "user,item,time\n1,2,\n1,,2\n")
    with pytest.raises(UserError, match="holds no interactions"):
        Custom(path=path, root=tmp_path / "root", malformed="skip").setup()


def test_every_start_warns_once_and_the_setting_is_part_of_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = MAKE["csv"](tmp_path)
    insert(path, ["1,2,soon", "1,2"])
    for _ in range(2):
        caplog.clear()
        data = Custom(path=str(path), root=str(tmp_path / "root"), malformed="skip")
        data.prepare_data()
        data.setup()
        (warning,) = caplog.messages
        assert "2 of 1,503 lines left out, the first of them line 522: the" in warning
        monkeypatch.setattr("sigma.datamodules.base.preprocess", None)  # only the cache is left
    with pytest.raises(UserError, match="line 522"):  # what skip left in the cache is not used
        Custom(path=str(path), root=str(tmp_path / "root")).setup()
