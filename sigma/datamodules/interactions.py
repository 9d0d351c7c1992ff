"""The form every reader produces: columns of integer codes in file order, plus the raw ids."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sigma.errors import printable


@dataclass(frozen=True)
class Skipped:
    """Malformed lines of a raw file that were left out."""

    lines: int  # how many
    of: int  # lines the file has
    first: int  # number of the first of them, from 1
    reason: str  # what is wrong with it

    def sentence(self, path: Path) -> str:
        return printable(
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
    parts: np.ndarray | None = None  # (n,) int8: 0 training, 1 validation, 2 test; None: not split

    def __len__(self) -> int:
        return len(self.users)


def joined(parts: Iterable[Interactions]) -> Interactions:
    """Interactions of one data set in several files, one after the other; no titles.

    Lines left out are counted together, ``of`` those of the files that have any.
    """
    user_codes: dict[str, int] = {}  # by raw id
    item_codes: dict[str, int] = {}
    users, items, times = [], [], []
    skipped: list[Skipped] = []
    for part in parts:
        users.append(_codes(part.user_ids, user_codes)[part.users])
        items.append(_codes(part.item_ids, item_codes)[part.items])
        times += [] if part.timestamps is None else [part.timestamps]
        skipped += [part.skipped] if part.skipped else []
    lines, of = (sum(getattr(s, name) for s in skipped) for name in ("lines", "of"))
    return Interactions(
        np.concatenate(users),
        np.concatenate(items),
        np.concatenate(times) if times else None,
        np.array(list(user_codes), dtype=object),
        np.array(list(item_codes), dtype=object),
        skipped=Skipped(lines, of, skipped[0].first, skipped[0].reason) if skipped else None,
    )


def _codes(ids: np.ndarray, codes: dict[str, int]) -> np.ndarray:
    """The code (n,) of each raw id, new ones for those that ``codes`` lacks."""
    return np.fromiter((codes.setdefault(raw, len(codes)) for raw in ids), np.int32, len(ids))
