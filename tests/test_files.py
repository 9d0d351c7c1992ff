"""Written whole, or not at all: what is synced before it takes its name."""

import errno
import os
from pathlib import Path

import pytest

from sigma.files import atomic_path, replace, sweep_stale


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names below the test's folder in the order in which they are synced and renamed."""
    names: list[str] = []

    def synced(handle: int) -> None:
        names.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")

    def renamed(source: Path, target: Path) -> None:
        names.append(f"rename {target.name}")
        os.rename(source, target)

    monkeypatch.setattr("sigma.files.os.fsync", synced)
    monkeypatch.setattr("sigma.files.os.replace", renamed)
    return names


def test_a_file_is_synced_before_it_takes_its_name(tmp_path: Path, events: list[str]) -> None:
    with atomic_path(tmp_path / "here" / "a") as partial:
        partial.write_text("new")
    assert events == [f"sync {partial.name}", "rename a", "sync here"]
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["a"]


def test_a_folder_is_synced_with_all_in_it(tmp_path: Path, events: list[str]) -> None:
    partial = tmp_path / "partial"
    (partial / "in").mkdir(parents=True)
    (partial / "in" / "a").write_text("x")
    (partial / "link").symlink_to("/nowhere")
    replace(partial, tmp_path / "b")
    assert sorted(events[:3]) == ["sync a", "sync in", "sync partial"]
    assert events[3:] == ["rename b", f"sync {tmp_path.name}"]


def test_a_file_system_that_cannot_sync_a_folder_is_one_to_write_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("sigma.files.os.fsync", refuses)
    with atomic_path(tmp_path / "a") as partial:
        partial.write_text("new")
    assert (tmp_path / "a").read_text() == "new"


def test_stale_leftovers_alone_are_swept(tmp_path: Path) -> None:
    for name in ("old.partial", "new.partial", "old.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.partial" / "in").mkdir(parents=True)
    for name in ("old.partial", "old.csv", "folder.partial"):
        os.utime(tmp_path / name, (0, 0))
    sweep_stale(tmp_path, "*.partial")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.partial", "old.csv"]
