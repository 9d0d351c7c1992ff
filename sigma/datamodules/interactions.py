"""The form every reader produces: columns of integer codes in file order, plus the raw ids."""

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
