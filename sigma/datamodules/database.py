"""DuckDB, which reads and sorts interactions, with memory and disk that are bounded and its own."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import psutil
import pyarrow as pa

MEMORY = 1 << 29
"""Bytes that DuckDB may hold, if they are no more than an eighth of the machine's; what does not
fit goes to the disk."""

LARGE = 4
"""Arrays of more than this part of the memory lie on the disk."""

ROWS = 1 << 20  # of a batch

LENIENT = "ignore_errors = getvariable('lenient'), store_rejects = getvariable('careful')"
"""Whether lines of text that are no rows are left out, in place of an error; and whether rows are
looked for from the next line on, which takes kilobytes for each that is left out."""


def identifier(name: str) -> str:
    """A column's name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def is_large(size: int) -> bool:
    """Whether arrays of so many bytes lie on the disk."""
    return bool(size > psutil.virtual_memory().total // LARGE)


class Database:
    """A database of its own, with a folder for what does not fit into memory.

    Args:
        folder: where that folder is made; None is the system's for temporary files.
        size: bytes of what it is to hold; much of it is held compressed, on the disk.
    """

    def __init__(self, folder: Path | None = None, size: int = 0) -> None:
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=".reading-", dir=folder))
        except OSError:  # one that nobody can write into
            self.folder = Path(tempfile.mkdtemp(prefix="reading-"))
        self.size = size
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @cached_property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """Opened at its first use: small data need none."""
        memory = min(MEMORY, psutil.virtual_memory().total // 8)
        threads = os.environ.get("OMP_NUM_THREADS", "")
        settings: dict[str, Any] = {
            "memory_limit": f"{memory // 2**20}MiB",
            "temp_directory": str(self.folder),
            "autoinstall_known_extensions": False,  # nothing is fetched
            "autoload_known_extensions": False,
        }
        if threads.isdigit():
            settings["threads"] = int(threads)
        place = self.folder / "tables.duckdb" if self.size > memory // 2 else ":memory:"
        connection = duckdb.connect(place, config=settings)
        connection.execute("SET TimeZone = 'UTC'; SET VARIABLE lenient = false")
        connection.execute("SET VARIABLE careful = false")
        weakref.finalize(self, connection.close)  # the last one made is called first
        return connection

    def arrays(self, length: int, kinds: Iterable[Any]) -> list[np.ndarray]:
        """New arrays; in files of the folder where they take a quarter of the memory."""
        kinds = list(map(np.dtype, kinds))
        if not is_large(length * sum(kind.itemsize for kind in kinds)):
            return [np.empty(length, kind) for kind in kinds]
        arrays: list[np.ndarray] = []
        for kind in kinds:
            handle, name = tempfile.mkstemp(suffix=".bin", dir=self.folder)
            os.close(handle)
            arrays.append(np.memmap(name, kind, "w+", shape=(length,)))
        return arrays

    def allow(self, paths: Iterable[Path]) -> None:
        """Let queries read these files, and none of the others from now on."""
        self.run("SET allowed_paths = $paths", paths=[str(path) for path in paths])
        self.run("SET enable_external_access = false")

    @contextmanager
    def lenient(self, careful: bool) -> Iterator[None]:
        """Meanwhile lines of text that are no rows are left out."""
        before = self.run("SELECT getvariable('lenient'), getvariable('careful')")[0]
        try:
            self._set(True, careful)
            yield
        finally:
            self._set(*before)

    def _set(self, lenient: bool, careful: bool) -> None:
        self.run(f"SET VARIABLE lenient = {lenient}; SET VARIABLE careful = {careful}")

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """Meanwhile a file is read from its beginning to its end."""
        before = self.value("SELECT current_setting('threads')")
        self.run("SET threads = 1")
        try:
            yield
        finally:
            self.run(f"SET threads = {before}")

    def run(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """All rows of a query's result."""
        rows: list[tuple[Any, ...]] = self.connection.execute(query, values or None).fetchall()
        return rows

    def value(self, query: str, **values: Any) -> Any:
        """The only value of a query's result."""
        ((value,),) = self.run(query, **values)
        return value

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query's result, ``ROWS`` at a time."""
        yield from self.connection.sql(query).to_arrow_reader(ROWS)

    def column(self, query: str) -> Any:
        """The only column of a query's result as an array."""
        values = self.connection.sql(query).to_arrow_table().column(0)
        return values.combine_chunks().to_numpy(zero_copy_only=False)
