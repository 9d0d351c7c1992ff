"""Checkpoint files: every bit that is read is as it was written, and a part of one is none."""

import errno
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sigma.checkpoints import PARTS, CheckpointFiles, load
from sigma.errors import UserError
from sigma.runs.files import BEST, LAST


def content(task: nn.Module) -> dict[str, Any]:
    return {"state_dict": task.state_dict()} | dict.fromkeys(PARTS, 1)


def flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def marks(data: bytes) -> list[int]:
    """Where each entry's attributes stand in the archive's table of contents."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        place, result = archive.start_dir, []
        for entry in archive.infolist():
            result.append(place + 38)
            place += 46 + len(entry.filename) + len(entry.extra)
    return result


def test_no_changed_bit_is_loaded(tmp_path: Path) -> None:
    """Neither of the content nor of what the archive says of it: one as a folder reads as zeros."""
    path = tmp_path / LAST
    task, other = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = task.state_dict()
    CheckpointFiles(task).save_checkpoint(content(task), path)
    data = path.read_bytes()
    places = [(place, place % 8) for place in range(0, len(data), 9)]
    refused = 0
    for place, bit in [*places, *((mark, 4) for mark in marks(data))]:
        path.write_bytes(flipped(data, place, bit))
        try:
            load(path, other)
        except UserError:
            refused += 1
            continue
        same = [torch.equal(other.state_dict()[name], expected[name]) for name in expected]
        assert all(same), (place, bit)
    assert len(places) / 2 < refused < len(places)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0" * 999, b"PK\x05\x06" + b"\0" * 18, pickled(content(nn.Linear(3, 2)))[:-99]),
        *map(pickled, ({}, [], content(nn.Linear(4, 2)), {"state_dict": 1}, content(nn.ReLU()))),
        *map(pickled, ({"state_dict": nn.Linear(3, 2).state_dict()}, nn.Linear(3, 2))),
    ],
)
def test_what_is_no_checkpoint_of_the_run_is_one_sentence(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / BEST
    files = CheckpointFiles(nn.Linear(3, 2))
    with pytest.raises(UserError, match=r"best\.ckpt is missing; delete .*checkpoints, and"):
        files.load_checkpoint(path)
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"best\.ckpt (is \w|does not fit|lacks)[^\n]*anew\.$"):
        files.load_checkpoint(path)


def test_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of it stays on a full disk."""
    path, task, calls = tmp_path / LAST, nn.Linear(3, 2), []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, c=call: (calls.append(n), c(*a)))
    files = CheckpointFiles(task)
    files.save_checkpoint(content(task), path)
    assert calls == ["fsync", "replace", "fsync"]
    data = path.read_bytes()

    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"a part of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        files.save_checkpoint(content(task), path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == data
