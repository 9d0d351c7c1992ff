"""Interactions -> sequences: filtering, order, dense ids (protocol of RecBole 1.2, mended).

Mended: timestamps stay int64 (RecBole sorts them as float32, which merges times 64 s apart, from
2^30 on, January 2004, 128 s; ``float32_times`` does, too).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sigma.datamodules.interactions import Interactions, Skipped
from sigma.errors import UserError

Bounds = tuple[int | None, int | None]


@dataclass(frozen=True)
class Sequences:
    """All histories in one flat array, so memory grows with interactions alone."""

    items: np.ndarray  # (n,) int32, ids from 1 (0 is padding), user by user, oldest first
    offsets: np.ndarray  # (users + 1,) int64; user u has ``items[offsets[u]:offsets[u + 1]]``
    timestamps: np.ndarray | None  # (n,) int64 beside ``items``
    user_ids: np.ndarray  # raw
    item_ids: np.ndarray  # raw; item j is ``item_ids[j - 1]``
    item_info: pd.DataFrame | None = None  # ``title``, ``genres`` in the order of ``item_ids``
    skipped: Skipped | None = None
    parts: np.ndarray | None = None  # (n,) int8 beside ``items``, of a data set that comes split

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of who had what, in which order; of times only the order."""
        parts = b"" if self.parts is None else self.parts.tobytes()
        content = self.items.tobytes() + self.offsets.tobytes() + parts
        return hashlib.blake2b(content, digest_size=8).hexdigest()

    @property
    def catalogue(self) -> pd.Index:
        """Raw ids of items 1 … K, as text."""
        return pd.Index([str(raw) for raw in self.item_ids], dtype=object)

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        return len(self.item_ids)


def preprocess(
    data: Interactions,
    user_bounds: Bounds = (None, None),
    item_bounds: Bounds = (None, None),
    drop_duplicates: bool = False,
    float32_times: bool | None = None,
) -> Sequences:
    """Filter, order and index one data set.

    Order: by user (first appearance in the file), then time, then the order of the file: ties in
    time keep the file's order. Item ids follow the first appearance in that file, too.

    Users (items) stay that have ``lower <= interactions < upper``; None is no bound. Of duplicates
    the first (in time) interaction of a user with an item stays.

    ``float32_times`` rounds the times of what is left to those that a float32 holds.

    Of data that comes in parts, a user's items are in order of the parts first.

    Raises:
        ValueError: bounds that exclude everything.
        UserError: nothing left after filtering, or less than all of data that comes in parts.
    """
    for name, (lower, upper) in (("user_bounds", user_bounds), ("item_bounds", item_bounds)):
        if lower is not None and upper is not None and lower >= upper:
            raise ValueError(f"{name}=[{lower}, {upper}) keeps nothing: lower must be below upper")
    if len(data) == 0:
        raise UserError("The data set holds no interactions; check the file of dataset.path.")
    users, items, times = _filtered(data, user_bounds, item_bounds, drop_duplicates)
    if data.parts is not None and len(users) < len(data):
        raise UserError(
            f"The filters would leave out {len(data) - len(users):,} of the {len(data):,} "
            "interactions of the split files, which are taken as they are; set "
            "'dataset.user_bounds=[null,null]', 'dataset.item_bounds=[null,null]' and "
            "dataset.drop_duplicates=false."
        )
    if float32_times and times is not None:
        times = times.astype(np.float32).astype(np.int64)
    users, user_codes = _densify(users)
    items, item_codes = _densify(items)
    counts = np.bincount(users, minlength=len(user_codes))
    order = np.lexsort([key for key in (times, data.parts, users) if key is not None])
    del users
    item_ids, info = data.item_ids[item_codes], data.item_info
    if info is not None:
        once = info[~info.index.duplicated()]  # of an item named twice, the first
        info = once.reindex([str(raw) for raw in item_ids]).reset_index(drop=True)
    return Sequences(
        items=items[order] + np.int32(1),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        timestamps=None if times is None else times[order],
        user_ids=data.user_ids[user_codes],
        item_ids=item_ids,
        item_info=info,
        skipped=data.skipped,
        parts=None if data.parts is None else data.parts[order],
    )


def _filtered(
    data: Interactions, user_bounds: Bounds, item_bounds: Bounds, drop_duplicates: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Users, items and times that stay when both sides are filtered until nothing changes."""
    users, items, times = data.users, data.items, data.timestamps
    # One mask at a time, not lists of indices: at ten million interactions they are what counts.
    keep = _first_occurrences(data) if drop_duplicates else np.ones(len(users), dtype=bool)
    while True:
        if not keep.all():
            users, items = users[keep], items[keep]
            times = None if times is None else times[keep]
        keep = _inside(users, user_bounds)
        keep &= _inside(items, item_bounds)
        if keep.all():
            break
    if len(users) == 0:
        raise UserError(
            f"No interactions are left after keeping users in {_interval(user_bounds)} and items "
            f"in {_interval(item_bounds)}; lower user_bounds or item_bounds."
        )
    return users, items, times


def _interval(bounds: Bounds) -> str:
    lower, upper = bounds
    return f"[{0 if lower is None else lower}, {'inf' if upper is None else upper})"


def _inside(codes: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Mask (n,) of the interactions whose user (or item) has a number of them within bounds."""
    counts = np.bincount(codes)
    lower, upper = bounds
    good = counts >= (lower or 0)
    if upper is not None:
        good &= counts < upper
    return good[codes]


def _first_occurrences(data: Interactions) -> np.ndarray:
    """Mask (n,) of each user's earliest interaction with each item."""
    pair = data.users.astype(np.int64) * len(data.item_ids) + data.items
    times = data.timestamps
    order = np.arange(len(pair)) if times is None else np.argsort(times, kind="stable")
    mask = np.zeros(len(pair), dtype=bool)
    mask[order[np.unique(pair[order], return_index=True)[1]]] = True
    return mask


def _densify(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes renumbered without gaps (their order kept): ``(new codes int32, old code of each)``."""
    used = np.bincount(codes) > 0
    new = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return new[codes], np.flatnonzero(used)
