"""What a data set holds, and whether it is the vintage the paper used."""

from dataclasses import dataclass

import numpy as np

from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.spans import SOME, Spans
from sigma.datamodules.splits import Split

SIDES = ("users", "items", "interactions")


@dataclass(frozen=True)
class Expected:
    """Counts after filtering that a data set should have; None is not known."""

    vintage: str  # which release, filtered how; ends a sentence
    users: int | None = None
    items: int | None = None
    interactions: int | None = None


@dataclass(frozen=True)
class DatasetStatistics:
    """Counts of one data set; ``matches`` is None when nothing is expected of it."""

    name: str
    users: int
    items: int
    interactions: int
    average_length: float
    sparsity: float  # 1 - interactions / (users * items)
    train_samples: int
    val_samples: int
    test_samples: int
    val_repeats: int  # targets that their history holds already
    test_repeats: int
    val_cold: int  # targets that training has nowhere
    test_cold: int
    expected: Expected | None
    matches: bool | None
    left_out: int  # lines of the raw files, malformed or with something missing

    def mismatch(self) -> str | None:
        """One sentence when the counts are not those expected, else None."""
        if self.matches is not False or self.expected is None:
            return None
        differences = [
            f"{getattr(self, side):,} {side} instead of {wish:,}"
            for side in SIDES
            if (wish := getattr(self.expected, side)) not in (None, getattr(self, side))
        ]
        return (
            f"{self.name} has {', '.join(differences)}, so it is not the expected vintage "
            f"({self.expected.vintage}); results are not comparable with those on that vintage."
        )


def describe(
    name: str, data: Sequences, split: Split, expected: Expected | None
) -> DatasetStatistics:
    users, items, n = counts = data.num_users, data.num_items, len(data.items)
    samples = len(split.samples), len(split.val), len(split.test)
    wishes = [getattr(expected, side, None) for side in SIDES]
    pairs = [pair for pair in zip(wishes, counts, strict=True) if pair[0] is not None]
    matches = all(wish == count for wish, count in pairs) if pairs else None
    shape = n / users, 1 - n / (users * items)
    repeated = repeats(data, split.val), repeats(data, split.test)
    left_out = data.skipped.lines if data.skipped else 0
    warm = training_items(data, split)
    cold = cold_targets(data, warm, split.val), cold_targets(data, warm, split.test)
    counted = (*counts, *shape, *samples, *repeated, *cold)
    return DatasetStatistics(name, *counted, expected, matches, left_out)


def training_items(data: Sequences, split: Split) -> np.ndarray:
    """Mask (K + 1,) of the items that training has."""
    mask = np.zeros(data.num_items + 1, dtype=bool)
    for some in split.seen(data).parts():
        mask[data.items[some]] = True
    return mask


def cold_targets(data: Sequences, warm: np.ndarray, positions: np.ndarray) -> int:
    """How many of the items at these positions are not in the mask."""
    return len(positions) - int(warm[data.items[positions]].sum())


def repeats(data: Sequences, positions: np.ndarray) -> int:
    """How many of the items at these positions their users had before."""
    users = np.searchsorted(data.offsets, positions, side="right") - 1
    if (np.diff(users) == 0).any():
        pairs = (
            np.repeat(np.arange(data.num_users), np.diff(data.offsets)) * (data.num_items + 1)
            + data.items
        )
        first = np.unique(pairs, return_index=True)[1]
        return int((~np.isin(positions, first)).sum())
    # One position a user needs no order of all interactions.
    number = 0
    for part in np.array_split(np.arange(len(positions)), len(data.items) // SOME + 1):
        stops = positions[part]
        before = Spans(data.offsets[users[part]], stops)
        counts = np.diff(before.ends, prepend=0)  # at least one, as a first item is no target
        same = data.items[before.positions()] == np.repeat(data.items[stops], counts)
        number += int(np.logical_or.reduceat(same, before.ends - counts).sum()) if len(part) else 0
    return number
