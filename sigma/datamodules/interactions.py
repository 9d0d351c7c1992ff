"""The form every reader produces: columns of integer codes in file order, plus the raw ids."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Skipped:
    """Malformed lines of a raw file that were left out."""

    lines: int  # how many
    of: int  # lines the file has
    first: int  # number of the first of them, from 1
    reason: str  # what is wrong with it

    def sentence(self, path: Path) -> str:
        return (
            f"{path}: {self.lines:,} of {self.of:,} lines left out as malformed, the first of them "
            f"line {self.first}: {self.reason}."
        )


@dataclass(frozen=True)
class Interactions:
    """Interactions of one data set, in the order of the file (it decides ties in time)."""

    users: np.ndarray  # (n,) int32, code of each interaction's user, an index into ``user_ids``
    items: np.ndarray  # (n,) int32, the same of its item, into ``item_ids``
    timestamps: np.ndarray | None  # (n,) int64, of any unit; None where the file is in order
    user_ids: np.ndarray
    item_ids: np.ndarray
    item_info: pd.DataFrame | None = None  # ``title``, ``genres`` by raw item id (as a string)
    skipped: Skipped | None = None

    def __len__(self) -> int:
        return len(self.users)


def joined(parts: Iterable[Interactions]) -> Interactions:
    """Interactions of one data set in several files, one after the other; no titles.

    Lines left out are counted together, ``of`` those of the files that have any.
    """
    codes: tuple[dict[str, int], dict[str, int]] = ({}, {})  # by raw id, of users and items
    columns: tuple[list[np.ndarray], ...] = ([], [], [])
    skipped: list[Skipped] = []
    for part in parts:
        sides = ((part.user_ids, part.users), (part.item_ids, part.items))
        for known, column, (ids, numbers) in zip(codes, columns, sides, strict=False):
            ours = (known.setdefault(raw, len(known)) for raw in ids)
            column.append(np.fromiter(ours, np.int32, len(ids))[numbers])
        if part.timestamps is not None:
            columns[2].append(part.timestamps)
        skipped += [part.skipped] if part.skipped else []
    users, items, *times = (np.concatenate(column) for column in columns if column)
    ids = (np.array(list(known), dtype=object) for known in codes)
    total = None
    if skipped:
        lines, of = (sum(getattr(s, name) for s in skipped) for name in ("lines", "of"))
        total = Skipped(lines, of, skipped[0].first, skipped[0].reason)
    return Interactions(users, items, times[0] if times else None, *ids, skipped=total)
