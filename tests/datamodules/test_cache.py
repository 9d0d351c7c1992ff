"""The cache: hit, stale, damaged, shared by processes, impossible to write."""

import dataclasses
import logging
import multiprocessing
import os
import time
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


def module(folder: Path, path: Path | None = None, **settings: Any) -> Custom:
    path = path or folder / "raw" / "mine.csv"
    return Custom(path=str(path), root=str(folder / "root"), **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw.csv_table(tmp_path / "raw" / "mine.csv", raw.interactions())
    return tmp_path


def cached(folder: Path) -> list[Path]:
    return sorted((folder / "root" / "processed").glob("*"))


def fresh(folder: Path, **settings: Any) -> Sequences:
    data = module(folder, **settings)
    data.setup()
    return data.sequences


def same(a: Sequences, b: Sequences) -> bool:
    info = (a.item_info is None) == (b.item_info is None)
    if a.item_info is not None and b.item_info is not None:
        info = a.item_info.astype(object).equals(b.item_info.astype(object))
    return info and all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("items", "offsets", "timestamps", "user_ids", "item_ids")
    )


def test_second_start_reads_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fresh(folder)
    assert len(cached(folder)) == 1
    monkeypatch.setattr("sigma.datamodules.base.preprocess", None)  # would fail if it were called
    assert same(fresh(folder), first)


@pytest.mark.parametrize(
    "settings",
    [
        {"user_bounds": [4, None]},
        {"item_bounds": [4, None]},
        {"user_bounds": [5, 99]},
        {"drop_duplicates": True, "user_bounds": [2, None], "item_bounds": [2, None]},
        {"columns": {"user": "item_id", "item": "user_id"}},
    ],
)
def test_other_settings_are_another_cache(folder: Path, settings: dict[str, Any]) -> None:
    fresh(folder)
    fresh(folder, **settings)
    assert len(cached(folder)) == 2


def test_settings_of_batches_and_splits_share_the_cache(folder: Path) -> None:
    fresh(folder)
    fresh(folder, max_length=7, split="global_time", batch_size=3, seed=1)
    assert len(cached(folder)) == 1


def test_other_content_is_another_cache(folder: Path) -> None:
    path = folder / "raw" / "mine.csv"
    stamp = path.stat()
    first = fresh(folder)
    text = path.read_text()
    raw.write(path, text.replace(",964982703", ",964982763"))  # same size
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # and same time of change
    assert path.stat().st_size == stamp.st_size
    assert not same(fresh(folder), first)
    assert len(cached(folder)) == 2


def test_titles_and_their_file_are_part_of_it(tmp_path: Path) -> None:
    path = raw.ml_csv(tmp_path / "raw", raw.interactions())
    first = module(tmp_path, path)
    first.setup()
    again = module(tmp_path, path)
    again.setup()
    assert same(first.sequences, again.sequences)
    assert again.sequences.title(1) == first.sequences.title(1) != "1"
    films = path / "movies.csv"
    raw.write(films, films.read_text().replace("Café", "Kino"))
    other = module(tmp_path, path)
    other.setup()
    assert other.sequences.title(1).startswith("Kino")


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b"\x80\x04no Arrow stream" + b,
        lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:],
        lambda b: b.replace(b"items", b"jtems"),
    ],
    ids=["empty", "half", "a byte short", "no stream", "a bit flipped", "a name changed"],
)
def test_damaged_cache_is_built_again(
    folder: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = fresh(folder)
    (file,) = cached(folder)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        assert same(fresh(folder), first)
    assert "it is built again" in caplog.text
    assert cache.load(file, file.stem.removeprefix("custom-")) is not None


def test_every_flipped_bit_is_noticed(folder: Path) -> None:
    fresh(folder)
    (file,) = cached(folder)
    key, content = file.stem.removeprefix("custom-"), file.read_bytes()
    for at in np.random.default_rng(0).integers(0, len(content), 60):
        file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        assert cache.load(file, key) is None


def test_stale_cache_is_built_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = fresh(folder)
    (file,) = cached(folder)
    fresh(folder, user_bounds=[4, None])
    (other,) = set(cached(folder)) - {file}
    file.write_bytes(other.read_bytes())  # whole, but made of something else
    with caplog.at_level(logging.WARNING):
        assert same(fresh(folder), first)
    assert "other data or settings" in caplog.text


def test_cache_of_another_format_is_not_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(folder)
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    fresh(folder)
    assert len(cached(folder)) == 2


def test_folder_that_cannot_be_written_costs_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw.write(folder / "root", "a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        data = fresh(folder)
    assert len(data.items)
    assert "could not be kept" in caplog.text


def test_full_disk_costs_nothing_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa.ipc, "new_stream", full)
    with caplog.at_level(logging.WARNING):
        assert len(fresh(folder).items)
    assert "No space left on device" in caplog.text
    assert cached(folder) == []


def _start(folder: str) -> int:
    data = fresh(Path(folder))
    return int(data.items.sum())


@pytest.mark.slow
def test_processes_that_start_at_once(folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(_start, [str(folder)] * 4, chunksize=1)
    assert len(set(sums)) == 1
    assert len(cached(folder)) == 1  # and no temporary file


def test_ids_of_all_kinds_come_back(tmp_path: Path) -> None:
    data = Sequences(
        items=np.array([1, 2], np.int32),
        offsets=np.array([0, 2], np.int64),
        timestamps=None,
        user_ids=np.array([2**62]),
        item_ids=np.array(["é" * 300, ""], dtype=object),
        item_info=pd.DataFrame({"title": ["x\n\x00y", None]}, dtype=object),
    )
    cache.save(tmp_path / "a.arrow", "k", data)
    loaded = cache.load(tmp_path / "a.arrow", "k")
    assert loaded.timestamps is None
    assert loaded.user_ids.tolist() == [2**62]
    assert loaded.item_ids.tolist() == ["é" * 300, ""]
    assert loaded.title(1) == "x\n\x00y"
    assert loaded.title(2) == ""
    # JSON may hold half an emoji, which is no text that a file could keep.
    half = dataclasses.replace(
        data, item_info=pd.DataFrame({"title": ["Cool \ud83d", "b"]}, dtype=object)
    )
    cache.save(tmp_path / "b.arrow", "k", half)
    loaded = cache.load(tmp_path / "b.arrow", "k")
    assert loaded.title(1) == "Cool ?"


BEAUTY = Path(__file__).parents[3] / "shared" / "data" / "beauty.txt"


@pytest.mark.data
@pytest.mark.skipif(not BEAUTY.exists(), reason="../shared/data/beauty.txt is not there")
def test_second_start_on_beauty_is_under_a_second(tmp_path: Path) -> None:
    module(tmp_path, BEAUTY).setup()
    start = time.perf_counter()
    module(tmp_path, BEAUTY).setup()
    assert time.perf_counter() - start < 1
