"""How a file is written: whole, or not at all, the loss of power included."""

import errno
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAY = 86_400.0  # seconds


def sync(path: Path) -> None:
    """Return when a file, or a folder's list of names, is on the disk."""
    if os.name != "posix" and path.is_dir():  # which cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # as SMB says of a folder
            raise
    finally:
        os.close(handle)


def replace(partial: Path, path: Path) -> None:
    """Give a finished file, or a folder with all in it, its name.

    A power loss leaves the older or the newer one, whole.
    """
    below = partial.rglob("*") if partial.is_dir() else ()
    for place in (partial, *below):
        if not place.is_symlink():
            sync(place)
    os.replace(partial, path)
    sync(path.parent)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which takes its name at the end; nothing on an error.

    The folder is made. Two processes at the same file do not meet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sweep_stale(folder: Path, *patterns: str) -> None:
    """Remove files and folders of these names that nobody has written to for a day.

    They are what killed processes leave, where other processes may be writing.
    """
    for path in itertools.chain.from_iterable(map(folder.glob, patterns)):
        with suppress(OSError):
            if abs(time.time() - path.lstat().st_mtime) < DAY:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
