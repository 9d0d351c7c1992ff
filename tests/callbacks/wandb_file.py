"""Reads a run's ``.wandb`` file: protobuf records in LevelDB's log format."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

wandb_internal_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")

BLOCK = 32768
FILE_HEADER = 7


def records(path: Path) -> list[Any]:
    """All records of the file, in order."""
    data = path.read_bytes()
    position, parts, found = FILE_HEADER, b"", []
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:  # the rest of a block too small for a header
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += 7
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def contents(path: Path, patience: float = 20.0) -> dict[str, Any]:
    """``run`` (the record), ``config``, ``history`` (a list of dicts), ``summary``, ``exit``.

    W&B's service writes in its own time, so a finished run's last record may be waited for.
    """
    deadline = time.monotonic() + patience
    while (found := parse(path))["exit"] is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def parse(path: Path) -> dict[str, Any]:
    """What the file holds now; see ``contents``."""
    result: dict[str, Any] = {"run": None, "config": {}, "history": [], "summary": {}, "exit": None}

    def key(item: Any) -> str:
        return item.key or ".".join(item.nested_key)

    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            result["run"] = record.run
            for item in record.run.config.update:
                result["config"][key(item)] = json.loads(item.value_json)
            for item in record.run.summary.update:
                result["summary"][key(item)] = json.loads(item.value_json)
        elif kind == "history":
            row = {key(i): json.loads(i.value_json) for i in record.history.item}
            result["history"].append(row)
        elif kind == "summary":
            for item in record.summary.update:
                result["summary"][key(item)] = json.loads(item.value_json)
        elif kind == "exit":
            result["exit"] = record.exit.exit_code
    return result
