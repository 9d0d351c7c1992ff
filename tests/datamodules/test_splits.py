"""Splits by hand."""

import numpy as np
import pytest

from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.splits import global_time, leave_one_out
from sigma.errors import UserError
from tests.datamodules import worlds


def sequences(times: list[list[int]]) -> Sequences:
    """One history a list of times; items do not matter here."""
    return worlds.sequences([[1] * len(history) for history in times], times)


def test_leave_one_out() -> None:
    split = leave_one_out(sequences([[0] * n for n in (5, 1, 3, 4, 2, 6)]))
    # users own 0-4, 5, 6-8, 9-12, 13-14, 15-20
    assert split.train.tolist() == [1, 2, 7, 10, 14, 16, 17, 18]
    assert split.val.tolist() == [3, 11, 19]
    assert split.test.tolist() == [4, 8, 12, 20]
    assert split.train_end.tolist() == [3, 6, 8, 11, 15, 19]


def test_global_time_by_hand() -> None:
    # Ten interactions: at fractions .2 and .2 the sixth and eighth in time begin val and test.
    data = sequences([[0, 3, 6, 9], [1, 2, 4, 7], [5, 8]])
    split = global_time(data, 0.2, 0.2)
    assert split.train.tolist() == [1, 5, 6]  # times 3, 2, 4
    assert split.val.tolist() == [2, 7]  # times 6 and 7; 5 is a first item, of no history
    assert split.test.tolist() == [3, 9]  # times 9 and 8
    assert split.train_end.tolist() == [2, 7, 9]


@pytest.mark.parametrize("seed", range(5))
def test_global_time_never_trains_on_the_later(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = sequences([sorted(rng.integers(0, 50, n).tolist()) for n in rng.integers(1, 12, 60)])
    split = global_time(data, 0.15, 0.2)
    times = data.timestamps
    assert times[split.train].max() < times[split.val].min()
    assert times[split.val].max() < times[split.test].min()
    every = np.sort(np.concatenate([split.train, split.val, split.test]))
    assert every.tolist() == sorted(set(range(len(times))) - set(data.offsets[:-1].tolist()))
    for user, end in enumerate(split.train_end):
        start, stop = data.offsets[user], data.offsets[user + 1]
        assert (times[start:end] < times[split.val].min()).all()
        assert (times[end:stop] >= np.sort(times)[int(len(times) * 0.65)]).all()


def test_global_time_needs_fractions_times_and_samples() -> None:
    for fractions in ((0, 0.1), (0.1, 0), (0.5, 0.5), (-0.1, 0.2), (0.1, 1.5)):
        with pytest.raises(ValueError, match="must be positive and sum to less than 1"):
            global_time(sequences([[0, 1, 2]]), *fractions)
    with pytest.raises(UserError, match="needs timestamps"):
        global_time(worlds.sequences([[1, 2, 3]]))
    split = global_time(sequences([[5, 5, 5, 5]]))
    assert (len(split.train), len(split.val), len(split.test)) == (0, 0, 3)
