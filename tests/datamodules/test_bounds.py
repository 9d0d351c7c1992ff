"""Bounds: on a line, on what a message quotes, on names, and on where an archive may write."""

import gzip
import io
import json
import random
import resource
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from omegaconf import OmegaConf

from experiments.grid import composed
from sigma.datamodules.locate import locate
from sigma.datamodules.preprocess import preprocess
from sigma.datamodules.readers import text as lines
from sigma.datamodules.readers.read import Reading
from sigma.datamodules.sets.custom import Custom
from sigma.datamodules.titles import read_titles
from sigma.errors import UserError, excerpt
from sigma.runs.check import check_config
from tests.datamodules import raw_files as raw
from tests.datamodules.reading import read
from tests.datamodules.test_malformed import MAKE

ROWS = raw.interactions(n=40)
CSV = "user_id,item_id,timestamp\n"
INTER = "user_id:token\titem_id:token\ttimestamp:float\n"


def refused(path: Path, malformed: str = "error") -> str:
    with pytest.raises(UserError) as error:
        preprocess(locate(path, path.parent / "unpacked").read(Reading(malformed=malformed)))
    return str(error.value)


def expect_readable(message: str) -> None:
    assert len(message) < 1200
    assert message.isprintable()


@pytest.mark.parametrize(
    ("name", "head"),
    [("a.txt.gz", ""), ("a.json.gz", ""), ("ratings.dat.gz", ""), ("a.csv.gz", CSV)],
)
def test_a_line_without_end_costs_no_memory(name: str, head: str, tmp_path: Path) -> None:
    """Two gigabytes in two megabytes."""
    path, part = tmp_path / name, gzip.compress(b"12 " * (1 << 20))
    path.write_bytes(gzip.compress(head.encode()) + part * 700)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert f"{name}: line {1 + bool(head)} is longer than 8,388,608" in refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


@pytest.mark.parametrize("reader", [read_titles, read], ids=["titles", "interactions"])
def test_a_quote_before_many_lines_costs_no_memory(
    reader: Callable[[Path], object], tmp_path: Path
) -> None:
    lines = [f'{k % 9},i{k % 7},"a, {k}",{k}' for k in range(200)]
    lines.insert(150, '1,i1,"a, "' + "x\n" * 1_000_000)
    path = raw.write(tmp_path / "a.csv", "user,item,title,timestamp\n" + "\n".join(lines) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"line 152: .*a quote stands out of place"):
        reader(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


@pytest.mark.parametrize("source", [*MAKE, "movies.dat", "u.item", "movies.csv", "a.item"])
def test_a_long_line_anywhere(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST", 1 << 12)
    monkeypatch.setattr(lines, "_CHUNK", 1 << 10)
    sides = {"movies.dat": raw.ml_1m, "u.item": raw.ml_100k, "movies.csv": raw.ml_csv}
    if source in MAKE:
        path = file = MAKE[source](tmp_path / "x")
    elif source == "a.item":
        path = raw.recbole(tmp_path / "x", "a", ROWS)
        file = path / source
    else:
        path = sides[source](tmp_path / "x", ROWS)
        file = path / source
    read(path)
    whole = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    long = whole + b"7" * 9000 + b"\n"
    file.write_bytes(gzip.compress(long) if file.suffix == ".gz" else long)
    line = len(whole.splitlines()) + 1
    assert f"{file.name}: line {line:,} is longer than 4,096" in refused(path)


@pytest.mark.parametrize("ends", ["\r", "\r\n", "\r\r\n", "mixed"])
@pytest.mark.parametrize("source", [*MAKE, "sequences", "pairs"])
def test_line_ends_of_any_kind(
    source: str, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A carriage return alone was a line's end to one reader and a blank to another."""
    monkeypatch.setattr(lines, "_CHUNK", 97)
    pairs = "".join(f"{u} {i}\n" for u, i, _ in ROWS)
    if source in MAKE:
        path = MAKE[source](tmp_path)
    elif source == "pairs":
        path = raw.write(tmp_path / "a.txt", pairs)
    else:
        path = raw.sequence_text(tmp_path / "a.txt", ROWS)
    expected = read(path)
    packed = path.suffix == ".gz"
    text = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    draw = random.Random(0)
    kinds = ["\r", "\n", "\r\n"] if ends == "mixed" else [ends]
    other = b"".join(line + draw.choice(kinds).encode() for line in text.splitlines())
    path.write_bytes(gzip.compress(other) if packed else other)
    again = read(path)
    for name in ("users", "items", "timestamps", "user_ids", "item_ids"):
        assert np.array_equal(getattr(again, name), getattr(expected, name))


def test_carriage_returns_beside_a_malformed_line(tmp_path: Path) -> None:
    """Both rows on what was one line to the slow reader are good, the malformed one is not."""
    text = "user_id,item_id,timestamp\nu1,i1,5\ru1,i2,6\r\nu2,i1,x\nu2,i2,7\n"
    path = raw.write(tmp_path / "a.csv", text)
    assert "line 4: the time 'x'" in refused(path)
    data = read(path, "skip")
    assert (data.item_ids.tolist(), data.timestamps.tolist()) == (["i1", "i2"], [5, 6, 7])
    path = raw.write(tmp_path / "b.csv", "user_id,item_id,date\r1,2,2018-10-31\r1,3,x\r")
    assert "line 3: the time 'x'" in refused(path)


def test_carriage_returns_behind_a_quote_out_of_place(tmp_path: Path) -> None:
    """Rows are read rightly, or not at all."""
    text = 'user_id,item_id,timestamp,text\ru1,i1,5,15" tv\ru2,i1,6,x\ru2,i2,7,y\r'
    assert len(read(raw.write(tmp_path / "a.csv", text))) == 3
    path = raw.write(tmp_path / "b.csv", text + "u3,i1,x,y\ru3,i2,8,y\r")
    assert "line 5: the time 'x'" in refused(path)
    assert len(read(path, "skip")) == 4


@pytest.mark.parametrize("more", ["", "u3,i3,x,t\n"])
def test_a_carriage_return_in_quotes_ends_no_row(more: str, tmp_path: Path) -> None:
    rows = ['"u\r1",i1,5,"a\rb ""c""\r"', 'u2,i1,6,"x\ny\rz"', 'u3,i2,7,15" tv', 'u4,"i\r3",8,t']
    text = "user_id,item_id,timestamp,text\n" + "\n".join(rows) + "\n"
    data = read(raw.write(tmp_path / "a.csv", text + more), "skip")
    assert data.user_ids.tolist() == ["u\n1", "u2", "u3", "u4"]
    assert data.item_ids.tolist() == ["i1", "i2", "i\n3"]
    assert (data.skipped is not None) == bool(more)


DEEP = "[" * 100_000 + "]" * 100_000
LONG = "x" * (1 << 18)
ACTS = "\x1b[31m" + "a\u202e\x07\x9b" * 30
REVIEW = {"reviewerID": "A1", "asin": "B1", "unixReviewTime": 5}
WIDE = ",".join(f"column{n}" for n in range(1000))
LOUD: dict[str, tuple[str, str | bytes]] = {
    "json: nested first line": ("a.json", DEEP),
    "json: nested objects": ("a.json", '{"a":' * 100_000),
    "json: nested field": ("a.json", json.dumps(REVIEW)[:-1] + f', "x": {DEEP}}}\n'),
    "json: a thousand fields": ("a.json", json.dumps({f"f{n}\x1b": n for n in range(1000)})),
    "csv: a thousand columns": ("a.csv", WIDE + "\n1,2\n"),
    "csv: acting names": ("a.csv", f"user_id,{ACTS}\n1,2\n"),
    "inter: no types": ("a.inter", "\t".join(f"c{n}" for n in range(1000)) + "\n1\t2\n"),
    "csv: a long time": ("a.csv", f"{CSV}1,2,{LONG}\n"),
    "csv: an acting time": ("a.csv", f"{CSV}1,2,{ACTS}\n"),
    "inter: a long time": ("a.inter", f"{INTER}1\t2\t{LONG}\n"),
    "inter: an acting time": ("a.inter", f"{INTER}1\t2\t{ACTS}\n"),
    "txt: a long user": ("a.txt", f"{LONG}\n2 3\n"),
    "txt: an acting user": ("a.txt", f"1 2 3\n{ACTS}\n"),
    "netflix: a long time": ("mv_1.txt", f"1:\n1,2,{LONG}\n"),
    "titles: a thousand columns": ("t.csv", WIDE + "\n1,2\n"),
    "titles: a long line": ("t.csv", "item,title\n" + "1," * 5000 + "\n"),
}


@pytest.mark.parametrize("case", LOUD)
def test_messages_stay_short_and_do_nothing(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = raw.write(tmp_path / LOUD[case][0], LOUD[case][1])
    with pytest.raises(UserError) as error:
        read_titles(path) if case.startswith("titles") else read(path)
    for message in [str(error.value).replace(str(tmp_path), ""), *caplog.messages]:
        expect_readable(message)
        assert "x" * 41 not in message
        assert len(message) < 600
        assert message.count("column") < 12


def test_a_warning_names_few_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = raw.write(tmp_path / "a.csv", f"user_id,item_id,{WIDE}\n" + "1,2" + ",3" * 1000 + "\n")
    assert len(read(path)) == 1
    (message,) = caplog.messages
    assert "column5 and 994 more) looks like a time" in message


def test_a_sentence_has_a_bound_whatever_it_quotes() -> None:
    message = str(UserError(f"{'/folder' * 900}\n\x1b[2J is no file; {'name another ' * 2}"))
    expect_readable(message)
    assert message.startswith("/folder/folder")
    assert message.endswith("name another name another ")
    assert str(UserError(message)) == message
    assert str(UserError("日本\u3000語\xa0é\t")) == "日本\u3000語\xa0é\\t"
    assert excerpt("a\nb" * 20) == "a\\nb" * 13 + "a…"


def test_any_bit_of_a_parquet_file(tmp_path: Path) -> None:
    """Of ids as text every bit was tried once; these are the kinds of faults there were."""
    ids = pa.array([f"ü{row % 3}" for row in range(20)])
    path = raw.parquet(tmp_path / "a.parquet", [raw.Row(1, k, k) for k in range(20)], user_id=ids)
    data = path.read_bytes()
    draw = random.Random(0)
    bits = [(draw.randrange(len(data)), draw.randrange(8)) for _ in range(50)]
    at = data.index("ü1".encode())
    for place, bit in [*bits, *((at, bit) for bit in range(8)), (49, 3), (286, 1), (393, 0)]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        with suppress(UserError):
            preprocess(locate(path, tmp_path).read())
    path.write_bytes(data[:40] + bytes(200) + data[240:])
    message = refused(path)
    expect_readable(message)
    assert "is not a readable Parquet file" in message


BAD_NAMES = ["../../evil", "/tmp/evil", "a\\b", "..", ".", "x" * 300, "a\nb", "a\0b", "é" * 51]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a name for files: at most 100 bytes, without /"):
        Custom(name=name, root=tmp_path)
    config = {"dataset": {"_target_": "sigma.datamodules.sets.custom.Custom", "name": name}}
    with pytest.raises(UserError, match=r"dataset\.name=.* must be a name for files") as error:
        check_config(config)
    expect_readable(str(error.value))


@pytest.mark.parametrize("name", ["ml_1m", "My shop [2024]", "[red]x", "é" * 50, "a:b", "x..y"])
def test_a_name_is_any_other_text(name: str, tmp_path: Path) -> None:
    path = raw.csv_table(tmp_path / "a.csv", raw.interactions())
    data = Custom(name=name, root=tmp_path / "root", path=path)
    data.setup()
    assert [p.parent.name for p in (tmp_path / "root").rglob("*.arrow")] == ["processed"]


@pytest.mark.parametrize("group", ["model", "dataset"])
def test_a_sweep_makes_no_folder_by_a_name_that_is_a_path(group: str) -> None:
    """Hydra makes it before the config is checked."""
    config = composed((f"{group}.name=../../evil",))
    with pytest.raises(Exception, match=rf"{group}\.name=\.\./\.\./evil must be a name for files"):
        OmegaConf.select(config, "hydra.sweep.subdir")


OUTSIDE = ["../evil.csv", "/tmp/evil-of-a-test.csv", "a/../../evil.csv", "..\\evil.csv"]


@pytest.mark.parametrize("name", [*OUTSIDE, "link"])
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_writes_nothing_outside(kind: str, name: str, tmp_path: Path) -> None:
    path, member = tmp_path / "data" / f"a.{kind}", raw.csv_table(tmp_path / "x.csv", ROWS)
    path.parent.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(member, "ratings.csv")
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o120777 << 16 if name == "link" else 0o644 << 16
            archive.writestr(entry, str(tmp_path) if name == "link" else "evil")
            archive.writestr("link/evil.csv", "evil") if name == "link" else None
    else:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(member, "ratings.csv")
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.SYMTYPE if name == "link" else tarfile.REGTYPE
            entry.linkname, entry.size = str(tmp_path), 0 if name == "link" else 4
            archive.addfile(entry, io.BytesIO(b"evil"))
            below = tarfile.TarInfo("link/evil.csv")
            below.size = 4
            archive.addfile(below, io.BytesIO(b"evil")) if name == "link" else None
    before = {p for p in tmp_path.rglob("*") if "unpacked" not in p.parts}
    try:
        locate(path, tmp_path / "data" / "unpacked")
    except UserError as error:
        expect_readable(str(error))
    after = {p for p in tmp_path.rglob("*") if "unpacked" not in p.parts}
    assert after == before
    assert not Path("/tmp/evil-of-a-test.csv").exists()
    assert not any(p.is_symlink() for p in tmp_path.rglob("*"))


def test_an_archive_of_a_long_name(tmp_path: Path) -> None:
    folder = raw.ml_1m(tmp_path / "x", ROWS)
    path = raw.zipped(folder).rename(tmp_path / f"{'y' * 250}.zip")
    assert len(read(path)) == len(ROWS)
