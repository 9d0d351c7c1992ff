"""Processed sequences on disk: found again by what they were made of, never trusted unchecked."""

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sigma.datamodules.interactions import Skipped
from sigma.datamodules.preprocess import Sequences

log = logging.getLogger(__name__)

FORMAT = 2
"""Version of the file's layout and of the preprocessing; raise it when either changes."""


def cache_key(files: Iterable[Path], settings: dict[str, Any]) -> str:
    """Hex digest of the raw files' bytes, all settings that shape the result, and ``FORMAT``."""
    parts: list[Any] = [FORMAT, settings]
    for file in files:
        with file.open("rb") as stream:
            parts.append(hashlib.file_digest(stream, "blake2b").hexdigest())
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def load(path: Path, key: str) -> Sequences | None:
    """The sequences under ``key``, or None (with a logged line) when they cannot be trusted."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        told = arrays.pop("digest").item()
        if arrays["key"].item() != key:
            raise ValueError("it was made of other data or settings")
        if told != _digest(arrays):
            raise ValueError("its checksum is wrong")
        info = {
            name: pd.Series(_unpack(arrays, name), dtype=object) for name in arrays["info"].tolist()
        }
        skipped = json.loads(arrays["skipped"].item())
        return Sequences(
            items=arrays["items"],
            offsets=arrays["offsets"],
            timestamps=arrays.get("timestamps"),
            user_ids=_unpack(arrays, "user_ids"),
            item_ids=_unpack(arrays, "item_ids"),
            item_info=pd.DataFrame(info) if info else None,
            skipped=Skipped(**skipped) if skipped else None,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:
        log.warning("The cached data %s cannot be used (%s); it is built again.", path, error)
        return None


def save(path: Path, key: str, data: Sequences) -> None:
    """Write atomically; where that is impossible, warn and go on without."""
    arrays = {"key": np.array(key), "items": data.items, "offsets": data.offsets}
    if data.timestamps is not None:
        arrays["timestamps"] = data.timestamps
    _pack(arrays, "user_ids", data.user_ids)
    _pack(arrays, "item_ids", data.item_ids)
    columns = [] if data.item_info is None else [str(c) for c in data.item_info.columns]
    arrays["info"] = np.array(columns, dtype=str)
    for name in columns:
        assert data.item_info is not None
        _pack(arrays, name, data.item_info[name].to_numpy(dtype=object))
    # Kept so that a start from the cache tells of the lines left out, too.
    arrays["skipped"] = np.array(json.dumps(data.skipped and asdict(data.skipped)))
    arrays["digest"] = np.array(_digest(arrays))
    partial: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own for each process, so that two that write at once do not mix.
        handle, partial = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
        partial = None
    except OSError as error:
        log.warning(
            "The processed data could not be kept in %s (%s); the next start processes it again. "
            "Make room there or set dataset.root to another folder.",
            path.parent,
            error.strerror or error,
        )
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _digest(arrays: dict[str, np.ndarray]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(f"{name} {array.dtype.str} {array.shape}".encode())
        state.update(array.reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def _pack(arrays: dict[str, np.ndarray], name: str, values: np.ndarray) -> None:
    """Whole numbers as they are; anything else as UTF-8 bytes and ends (-1 - end where missing)."""
    if values.dtype != object:
        arrays[name] = values
        return
    # A title may hold half an emoji, as JSON's escapes can.
    texts = [v.encode("utf-8", "replace") if isinstance(v, str) else None for v in values]
    ends = np.cumsum([len(text or b"") for text in texts], dtype=np.int64)
    missing = np.array([text is None for text in texts], dtype=bool)
    arrays[f"{name}.text"] = np.frombuffer(b"".join(t or b"" for t in texts), dtype=np.uint8)
    arrays[f"{name}.ends"] = np.where(missing, -1 - ends, ends)


def _unpack(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name in arrays:
        return arrays[name]
    text = arrays[f"{name}.text"].tobytes()
    start = 0
    values: list[str | None] = []
    for end in arrays[f"{name}.ends"].tolist():
        missing = end < 0
        end = -1 - end if missing else end
        values.append(None if missing else text[start:end].decode("utf-8"))
        start = end
    unpacked = np.empty(len(values), dtype=object)
    unpacked[:] = values
    return unpacked
