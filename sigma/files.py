"""How a file is written: whole, or not at all, the loss of power included."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace(partial: Path, path: Path) -> None:
    """Give a finished file its name: a power loss leaves the older or the newer one, whole."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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
