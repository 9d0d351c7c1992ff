"""Processed sequences on disk: looked up by what they are made of, never trusted unchecked.

A file is an Arrow stream of one row, whose columns are lists, and a digest of all before it.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sigma.datamodules.database import is_large
from sigma.datamodules.interactions import Skipped
from sigma.datamodules.preprocess import Sequences
from sigma.errors import excerpt
from sigma.files import atomic_path, sweep_stale

log = logging.getLogger(__name__)

FORMAT = 4
"""Version of the file's layout and of the preprocessing; raise it when either changes."""
DIGEST = 16  # bytes
ARRAYS = ("items", "offsets", "timestamps", "user_ids", "item_ids", "parts")


def cache_key(files: Iterable[Path], settings: Any) -> str:
    """Hex digest of the raw files' bytes, all settings that shape the result, and ``FORMAT``."""
    parts: list[Any] = [FORMAT, settings]
    for file in files:
        with file.open("rb") as stream:
            parts.append(hashlib.file_digest(stream, "blake2b").hexdigest())
    return str(_hash(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest())


def load(path: Path, key: str) -> Sequences | None:
    """The sequences under ``key``, or None (with a logged line) when they cannot be trusted."""
    try:
        return _read(path, key) if path.exists() else None
    except Exception as error:  # a file that something else has written fails in many ways
        reason = excerpt(error, 100) or type(error).__name__
        log.warning("The cached data %s cannot be used (%s); it is built again.", path, reason)
        return None


def _read(path: Path, key: str) -> Sequences:
    if not path.is_file():
        raise OSError("it is no file")
    content = pa.memory_map(str(path)).read_buffer()
    if len(content) < DIGEST or _hash(content[:-DIGEST]).digest() != content[-DIGEST:]:
        raise ValueError("it is damaged")
    batch = pa.ipc.open_stream(content).read_next_batch()
    batch.validate(full=True)  # lengths lie within the file
    notes = json.loads(batch.schema.metadata[b"notes"])
    if notes["key"] != key:
        raise ValueError("it was made of other data or settings")
    values = {name: _array(path, content, batch.column(name).values) for name in batch.schema.names}
    arrays: dict[str, Any] = {name: values.pop(name, None) for name in ARRAYS}
    info = {name: pd.Series(column, dtype=object) for name, column in values.items()}
    skipped = notes["skipped"] and Skipped(**notes["skipped"])
    return Sequences(**arrays, item_info=pd.DataFrame(info) if info else None, skipped=skipped)


def _array(path: Path, content: pa.Buffer, column: pa.Array) -> np.ndarray:
    """A column in memory, or, where all take much of that, in the file; what is written into it
    stays with this process."""
    if not is_large(len(content)) or pa.types.is_large_string(column.type):
        return column.to_numpy(zero_copy_only=False, writable=True)
    start = column.buffers()[1].address - content.address
    kind = column.type.to_pandas_dtype()
    return np.memmap(path, kind, "c", offset=start, shape=(len(column),))


def save(path: Path, key: str, data: Sequences) -> None:
    """Write atomically; where that is impossible, warn and go on without."""
    values = {name: getattr(data, name) for name in ARRAYS}
    if data.item_info is not None:
        values |= {str(name): column.to_numpy() for name, column in data.item_info.items()}
    columns = {name: _one_row(array) for name, array in values.items() if array is not None}
    # What was skipped is kept, so that a start from the cache says so, too.
    notes = {"key": key, "skipped": data.skipped and asdict(data.skipped)}
    table = pa.table(columns, metadata={"notes": json.dumps(notes)})
    try:
        with atomic_path(path) as partial:
            with pa.ipc.new_stream(partial, table.schema) as stream:
                stream.write_table(table)
            with partial.open("rb+") as file:
                file.write(hashlib.file_digest(file, _hash).digest())
        sweep_stale(path.parent, ".*.partial", ".*.part")  # the latter of earlier versions
    except OSError as error:
        log.warning(
            "The processed data could not be kept in %s (%s); the next start processes it again. "
            "Make room there or choose another root folder.",
            path.parent,
            error.strerror or error,
        )


def _hash(content: Any = b"") -> Any:
    return hashlib.blake2b(content, digest_size=DIGEST)


def _one_row(values: np.ndarray) -> pa.Array:
    """A list of all values: numbers as they are, text as UTF-8, what is neither as missing."""
    if values.dtype == object:
        try:
            array = pa.array(values, pa.large_string())
        except (pa.ArrowException, UnicodeError):
            # A title may hold half an emoji, as JSON's escapes can.
            text = [v.encode("utf-8", "replace") if isinstance(v, str) else None for v in values]
            array = pa.array(text, pa.large_binary()).cast(pa.large_string())
    else:
        array = pa.array(values)
    return pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array)
