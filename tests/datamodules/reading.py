"""Interactions as arrays, for tests that look at all of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sigma.datamodules.interactions import Interactions, Skipped
from sigma.datamodules.locate import locate
from sigma.datamodules.readers.read import Reading


@dataclass(frozen=True)
class Rows:
    """All interactions, coded by the first appearance of raw ids."""

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray | None
    user_ids: np.ndarray
    item_ids: np.ndarray
    item_info: pd.DataFrame | None
    skipped: Skipped | None

    def __len__(self) -> int:
        return len(self.users)


def rows(data: Interactions) -> Rows:
    frame = data.frame()
    users, user_ids = pd.factorize(frame["user"])
    items, item_ids = pd.factorize(frame["item"])
    times = frame["time"].to_numpy() if data.timed else None
    users, items = users.astype(np.int32), items.astype(np.int32)
    ids = np.asarray(user_ids), np.asarray(item_ids)
    return Rows(users, items, times, *ids, data.item_info, data.skipped)


def read(path: Path, malformed: str = "error", **settings: Any) -> Rows:
    """What is read of a path with these settings of ``Reading``."""
    reading = Reading(malformed=malformed, **settings)  # type: ignore[arg-type]
    return rows(locate(path, path.parent / "unpacked", (), reading).read(reading))


def same(a: Rows, b: Rows) -> bool:
    names = ("users", "items", "timestamps", "user_ids", "item_ids")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)
