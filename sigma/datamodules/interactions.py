"""The form every reader produces: columns of integer codes in file order, plus the raw ids."""

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Interactions:
    """Interactions of one data set, in the order of the file (it decides ties in time).

    Attributes:
        users: (n,) int32, code of each interaction's user, an index into ``user_ids``.
        items: (n,) int32, code of each interaction's item, an index into ``item_ids``.
        timestamps: (n,) int64, seconds (or any unit that orders), or None when the file itself
            is in order and holds no time.
        user_ids: raw user ids, one per code.
        item_ids: raw item ids, one per code.
        item_info: optional frame indexed by raw item id (as a string), with any of the columns
            ``title`` and ``genres``; items it lacks have no title.
    """

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray | None
    user_ids: np.ndarray
    item_ids: np.ndarray
    item_info: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        if len(self.users) != len(self.items) or (
            self.timestamps is not None and len(self.timestamps) != len(self.users)
        ):
            raise ValueError("users, items and timestamps must have the same length")

    def __len__(self) -> int:
        return len(self.users)
