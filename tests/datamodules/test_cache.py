"""The cache: hit, stale, damaged, shared by processes, impossible to write."""

import dataclasses
import errno
import hashlib
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sigma.datamodules import cache
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.sets.custom import Custom
from tests.datamodules import raw_files as raw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw.csv_table(tmp_path / "raw" / "mine.csv", raw.interactions())
    return tmp_path


def fresh(folder: Path, path: Path | None = None, **settings: Any) -> Sequences:
    """What a start with ``folder`` as its root reads."""
    path = path or folder / "raw" / "mine.csv"
    return Custom(path=path, root=folder / "root", **settings).sequences


def cached(folder: Path) -> list[Path]:
    return sorted((folder / "root" / "processed").glob("*"))


def load(file: Path) -> Sequences | None:
    return cache.load(file, file.stem.removeprefix("custom-"))


def same(a: Sequences, b: Sequences) -> bool:
    info, other = (pd.DataFrame(x.item_info, dtype=object) for x in (a, b))
    return info.equals(other) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in cache.ARRAYS
    )


def test_second_start_reads_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fresh(folder)
    # Settings of batches and splits share it.
    monkeypatch.setattr("sigma.datamodules.base.preprocess", None)  # would fail if it were called
    again = fresh(folder, max_length=7, split="global_time", batch_size=3, seed=1)
    assert same(again, first)
    assert again.items.dtype == first.items.dtype
    assert again.items.flags.writeable  # or PyTorch warns
    assert len(cached(folder)) == 1


@pytest.mark.parametrize(
    "settings",
    [
        *({"user_bounds": [4, None]}, {"item_bounds": [4, None]}, {"user_bounds": [5, 99]}),
        {"duplicates": "first", "user_bounds": [2, None], "item_bounds": [2, None]},
        *({"columns": {"user": "item_id", "item": "user_id"}}, {"malformed": "skip"}),
        {"float32_times": True},
    ],
)
def test_other_settings_are_another_cache(folder: Path, settings: dict[str, Any]) -> None:
    fresh(folder)
    fresh(folder, **settings)
    assert len(cached(folder)) == 2


def test_other_content_is_another_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "raw" / "mine.csv"
    stamp = path.stat()
    first = fresh(folder)
    raw.write(path, path.read_text().replace(",964982703", ",964982763"))  # same size
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # and same time of change
    assert path.stat().st_size == stamp.st_size
    assert not same(fresh(folder), first)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    fresh(folder)
    assert len(cached(folder)) == 3


def test_titles_and_their_file_are_part_of_it(tmp_path: Path) -> None:
    path = raw.ml_csv(tmp_path / "raw", raw.interactions())
    first, again = fresh(tmp_path, path), fresh(tmp_path, path)
    assert same(first, again)
    assert again.item_info["title"][0].startswith("Café")
    films = path / "movies.csv"
    raw.write(films, films.read_text().replace("Café", "Kino"))
    assert fresh(tmp_path, path).item_info["title"][0].startswith("Kino")


def flipped(content: bytes, bit: int) -> bytes:
    at, mask = bit // 8, 1 << bit % 8
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


def test_every_damage_is_noticed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Flipped bits, files cut off, and what is no Arrow stream."""
    fresh(folder)
    (file,) = cached(folder)
    content = file.read_bytes()
    damaged = [b"", content[: len(content) // 2], content[:-1], b"\x80\x04no stream" + content]
    bits = np.random.default_rng(0).integers(0, 8 * len(content), 60)
    damaged += [flipped(content, bit) for bit in bits.tolist()]
    for other in damaged:
        file.write_bytes(other)
        assert load(file) is None
    assert len(caplog.messages) == len(damaged)


def test_a_digest_over_something_else_breaks_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lengths beyond the file, another layout, notes of another kind."""
    fresh(folder)
    (file,) = cached(folder)
    content = file.read_bytes()[: -cache.DIGEST]
    bits = range(0, 8 * len(content), 37)
    others = [flipped(content, bit) for bit in bits]
    for notes in ({}, {"notes": "{"}, {"notes": "[]"}, {"notes": "{}"}):
        stream = pa.BufferOutputStream()
        table = pa.table({"items": [[1, 2]]}, metadata=notes)
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        others.append(stream.getvalue().to_pybytes())
    refused = 0
    for other in others:
        file.unlink()
        file.write_bytes(other + hashlib.blake2b(other, digest_size=cache.DIGEST).digest())
        refused += load(file) is None
    assert refused == len(caplog.messages) > 100


def broken(_: int) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_costs_nothing(
    kind: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fresh(folder)
    (file,) = cached(folder)
    file.unlink()
    {"folder": Path.mkdir, "pipe": os.mkfifo, "link": lambda x: x.symlink_to("/tmp")}[kind](file)
    assert same(fresh(folder), first)
    assert "it is no file" in caplog.text
    assert (load(file) is None) == (kind == "folder")


def test_leftovers_of_kills_are_swept(folder: Path) -> None:
    place = folder / "root" / "processed"
    for name in (".old.arrow.1.partial", ".older-1234.part", "of-the-user.part"):
        os.utime(raw.write(place / name, "some"), (0, 0))
    raw.write(place / ".new.arrow.2.partial", "some")  # another process may be writing it
    fresh(folder)
    names = {path.name for path in cached(folder) if path.suffix != ".arrow"}
    assert names == {".new.arrow.2.partial", "of-the-user.part"}


@pytest.mark.parametrize(
    ("stop", "message"), [(None, "other data or settings"), (-1, "it is built again"), (0, "again")]
)
def test_stale_or_damaged_cache_is_built_again(
    stop: int | None, message: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fresh(folder)
    (file,) = cached(folder)
    fresh(folder, user_bounds=[4, None])
    (other,) = set(cached(folder)) - {file}
    file.write_bytes(other.read_bytes()[:stop])
    assert same(fresh(folder), first)
    assert message in caplog.text
    assert load(file) is not None


def test_full_disk_and_folder_that_cannot_be_written_cost_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, schema: pa.Schema) -> None:
        path.write_bytes(b"some of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pa.ipc, "new_stream", full)
        assert len(fresh(folder).items)
    assert "No space left on device" in caplog.text
    assert cached(folder) == []
    caplog.clear()
    shutil.rmtree(folder / "root")
    raw.write(folder / "root", "a file where the folder should be")
    assert len(fresh(folder).items)
    assert "could not be kept" in caplog.text


def test_what_is_not_on_the_disk_takes_no_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sigma.files.os.fsync", broken)
    assert len(fresh(folder).items)
    assert "Input/output error" in caplog.text
    assert cached(folder) == []


def _start(folder: Path) -> int:
    return int(fresh(folder).items.sum())


@pytest.mark.slow
def test_processes_that_start_at_once(folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(_start, [folder] * 4, chunksize=1)
    assert len(set(sums)) == 1
    assert len(cached(folder)) == 1  # and no temporary file


@pytest.mark.parametrize("title", ["x\n\x00y", "Cool \ud83d"])  # JSON may hold half an emoji
def test_ids_and_titles_of_all_kinds_come_back(title: str, tmp_path: Path) -> None:
    data = Sequences(
        items=np.array([1, 2], np.int32),
        offsets=np.array([0, 2], np.int64),
        timestamps=None,
        user_ids=np.array([2**62]),
        item_ids=np.array(["é" * 300, ""], dtype=object),
        item_info=pd.DataFrame({"title": [title, None]}, dtype=object),
    )
    cache.save(tmp_path / "a.arrow", "k", data)
    loaded = cache.load(tmp_path / "a.arrow", "k")
    expected = pd.DataFrame({"title": [title.replace("\ud83d", "?"), None]}, dtype=object)
    assert same(loaded, dataclasses.replace(data, item_info=expected))
    assert loaded.timestamps is None
