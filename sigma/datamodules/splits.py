"""Which positions of the flat array are predicted in training, validation and test.

A sample is one position p of ``Sequences.items``: the item at p is the target, and the items of
the same user before p are the input. No prefix is ever materialised.
"""

from dataclasses import dataclass

import numpy as np

from sigma.datamodules.preprocess import Sequences
from sigma.errors import UserError


@dataclass(frozen=True)
class Split:
    """Target positions, each (samples,) int64 and increasing."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    train_end: np.ndarray  # (users,) first position of each user that training must not see


def leave_one_out(data: Sequences) -> Split:
    """Last item of each user is the test target, the second-last validation, the rest training.

    A user's first sample always trains, as in RecBole: two items give one training sample, three
    give a training and a test sample.
    """
    starts, ends = data.offsets[:-1], data.offsets[1:]
    samples = ends - starts - 1
    test = ends[samples >= 2] - 1
    val = ends[samples >= 3] - 2
    is_train = np.ones(len(data.items), dtype=bool)
    is_train[np.concatenate([starts, test, val])] = False
    return Split(np.flatnonzero(is_train), val, test, ends - np.clip(samples - 1, 0, 2))


def global_time(data: Sequences, val_fraction: float = 0.1, test_fraction: float = 0.1) -> Split:
    """Two moments in time cut the data: nothing later than the first is ever trained on.

    The leak-free alternative to leave-one-out: there, one user's training items may be later than
    another user's test item. The moments are the quantiles of all timestamps such that about
    ``val_fraction`` and ``test_fraction`` of the interactions lie after them; interactions of the
    same timestamp always fall on the same side. Every interaction of a period that has a history
    is a sample of it.

    Raises:
        ValueError: fractions out of range.
        UserError: no timestamps.
    """
    if data.timestamps is None:
        raise UserError(
            "A split by global_time needs timestamps, and this data set has none; split it by "
            "leave_one_out."
        )
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction} must be positive and "
            "sum to less than 1"
        )
    times = data.timestamps
    n = len(times)
    # A fraction of less than one interaction rounds to a place behind the last.
    cuts = [int(n * (1 - val_fraction - test_fraction)), int(n * (1 - test_fraction))]
    moments = np.sort(times)[np.minimum(cuts, n - 1)]
    period = np.searchsorted(moments, times, side="right")
    before = np.concatenate([[0], np.cumsum(period == 0)])
    train_end = data.offsets[:-1] + before[data.offsets[1:]] - before[data.offsets[:-1]]
    period[data.offsets[:-1]] = -1  # a first item is no sample
    train, val, test = (np.flatnonzero(period == k) for k in range(3))
    return Split(train, val, test, train_end)
