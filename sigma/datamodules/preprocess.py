"""Interactions -> sequences: filtering, order, dense ids (protocol of RecBole 1.2, mended).

Mended: timestamps stay int64 (RecBole sorts them as float32, which merges times 64 s apart, from
2^30 on, January 2004, 128 s; ``float32_times`` does, too).
"""

import hashlib
import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sigma.datamodules import in_memory, out_of_core
from sigma.datamodules.interactions import Bounds, Duplicates, Interactions, Skipped
from sigma.errors import UserError, excerpt

__all__ = ["Bounds", "Duplicates", "Sequences", "preprocess"]

log = logging.getLogger(__name__)


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
        digest = hashlib.blake2b(self.items.data, digest_size=8)
        digest.update(self.offsets.data)
        digest.update(b"" if self.parts is None else self.parts.data)
        return digest.hexdigest()

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
    duplicates: Duplicates = "keep",
    float32_times: bool | None = None,
) -> Sequences:
    """Filter, order and index one data set; the interactions are used up.

    Order: by user (first appearance in the file), then time, then the order of the file: ties in
    time keep the file's order. Item ids follow the first appearance in that file, too. Of a shop
    both follow its own numbers.

    Users (items) stay that have ``lower <= interactions < upper``; None is no bound.

    ``duplicates`` says what stays of a user's interactions with the same item: all of them
    (``keep``), one at each time (``identical``), one of those that follow each other
    (``consecutive``), or the first in time (``first``).

    ``float32_times`` rounds the times of what is left to those that a float32 holds.

    Of data that comes in parts, a user's items are in order of the parts first.

    Raises:
        ValueError: bounds that exclude everything.
        UserError: nothing left after filtering, or less than all of data that comes in parts.
    """
    for name, (lower, upper) in (("user_bounds", user_bounds), ("item_bounds", item_bounds)):
        if lower is not None and upper is not None and lower >= upper:
            raise ValueError(f"{name}=[{lower}, {upper}) keeps nothing: lower must be below upper")
    total = len(data)
    if total == 0:
        raise UserError("The data set holds no interactions; check the file of dataset.path.")
    bounds = {"user": user_bounds, "item": item_bounds}

    def check(rows: int) -> None:
        if data.ends and rows < total:
            raise UserError(
                f"The filters would leave out {total - rows:,} of the {total:,} interactions of "
                "the split files, which are taken as they are; set "
                "'dataset.user_bounds=[null,null]', 'dataset.item_bounds=[null,null]' and "
                "dataset.duplicates=keep."
            )
        if not rows:
            raise UserError(
                f"No interactions are left after keeping users in {_interval(user_bounds)} and "
                f"items in {_interval(item_bounds)}; lower user_bounds or item_bounds."
            )

    room = in_memory if total <= in_memory.ROWS else out_of_core
    result = room.ordered(data, bounds, duplicates, bool(float32_times), check)
    for side, twins in result.twins.items():
        _warn_of_twins(side, *twins)
    info = data.item_info
    if info is not None:
        once = info[~info.index.duplicated()]  # of an item named twice, the first
        info = once.reindex([str(raw) for raw in result.item_ids]).reset_index(drop=True)
    return Sequences(
        items=result.items,
        offsets=np.concatenate([[0], np.cumsum(result.counts)]),
        timestamps=result.times,
        user_ids=result.user_ids,
        item_ids=result.item_ids,
        item_info=info,
        skipped=data.skipped,
        parts=result.parts,
    )


def _interval(bounds: Bounds) -> str:
    lower, upper = bounds
    return f"[{0 if lower is None else lower}, {'inf' if upper is None else upper})"


def _warn_of_twins(side: str, first: str, second: str, number: int) -> None:
    log.warning(
        "%s of the %ss are written in two ways, such as %r and %r, and count as different "
        "ones; write each in one way if they are the same.",
        *(f"{number:,}", side, excerpt(first), excerpt(second)),
    )
