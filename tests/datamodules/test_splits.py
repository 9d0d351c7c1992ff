"""Splits by hand, and beside a plain computation with a loop over users."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.splits import Split, by_files, global_time, leave_one_out
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


CUTS = (20, 35)
OPTIONS = [(t, f) for t in ("successive", "first", "last", "random") for f in (False, True)]


def world(seed: int) -> Sequences:
    """Users of 1 to 11 items at times with ties, some of them all in one period."""
    rng = np.random.default_rng(seed)
    spans = [np.sort(rng.integers(0, 50, 2)) for _ in range(60)]
    times = [np.sort(rng.integers(a, b + 1, rng.integers(1, 12))).tolist() for a, b in spans]
    return sequences([[0, 1, 2], *times, [49]])


def plain(data: Sequences, periods: list[list[int]], targets: str, train_on_val: bool) -> Any:
    """Per user: what trains, what is asked for, and where training ends; random is every choice."""
    train, asked, ends = [], {1: [], 2: []}, []
    for start, period in zip(data.offsets[:-1].tolist(), periods, strict=True):
        trains = [p == 0 or (p == 1 and train_on_val) for p in period]
        ends.append(start + sum(trains))
        train += [start + i for i, yes in enumerate(trains) if yes and i > 0]
        for part in (1, 2):
            later = [start + i for i, p in enumerate(period) if p == part and i > 0]
            if not later or (part == 1 and train_on_val):
                continue
            one = {"first": later[:1], "last": later[-1:], "random": later}
            asked[part] += [one[targets]] if targets in one else [[i] for i in later]
    return train, asked[1], asked[2], ends


def expect(split: Split, plainly: Any) -> None:
    train, val, test, ends = plainly
    assert split.train.tolist() == train
    assert split.train_end.tolist() == ends
    for positions, choices in ((split.val, val), (split.test, test)):
        assert len(positions) == len(choices)
        assert all(p in some for p, some in zip(positions.tolist(), choices, strict=True))


def per_user(data: Sequences, values: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(values, data.offsets[1:-1])]


@pytest.mark.parametrize(("targets", "train_on_val"), OPTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_global_time_beside_a_loop(seed: int, targets: Any, train_on_val: bool) -> None:
    data = world(seed)
    times = per_user(data, data.timestamps)
    periods = [[(t >= CUTS[0]) + (t >= CUTS[1]) for t in history] for history in times]
    split = global_time(data, 0.5, 0.4, *CUTS, targets, train_on_val)
    expect(split, plain(data, periods, targets, train_on_val))
    seen = [data.timestamps[a:b] for a, b in zip(data.offsets, split.train_end, strict=False)]
    assert np.concatenate(seen).max() < CUTS[train_on_val]  # nothing leaks
    assert data.timestamps[split.test].min() >= CUTS[1]


@pytest.mark.parametrize("train_on_val", [False, True])
def test_leave_one_out_beside_a_loop(train_on_val: bool) -> None:
    data = world(5)
    periods = []
    for length in np.diff(data.offsets).tolist():
        period = [0] * length
        if length >= 3:
            period[-1] = 2
        if length >= 4:
            period[-2] = 1
        periods.append(period)
    expect(leave_one_out(data, train_on_val), plain(data, periods, "successive", train_on_val))


@pytest.mark.parametrize(("targets", "train_on_val"), OPTIONS)
def test_files_beside_a_loop(targets: Any, train_on_val: bool) -> None:
    data = world(6)
    rng = np.random.default_rng(0)
    periods = [sorted(rng.integers(0, 3, n).tolist()) for n in np.diff(data.offsets)]
    data = dataclasses.replace(data, parts=np.concatenate(periods).astype(np.int8))
    split = by_files(data, targets, train_on_val)
    expect(split, plain(data, periods, targets, train_on_val))


def test_random_targets_are_even_and_the_same_on_every_start() -> None:
    data = sequences([list(range(10))] * 3000)
    splits = [global_time(data, 0, 0, 2, 5, "random", final) for final in (False, False, True)]
    val, test = splits[0].val % 10, splits[0].test % 10
    assert set(val) == {2, 3, 4}
    counts = np.bincount(test, minlength=10)
    assert (counts[:5] == 0).all()
    assert (abs(counts[5:] - 600) < 100).all()
    assert np.corrcoef(val, test)[0, 1] < 0.1
    assert (splits[0].test[:6] % 10).tolist() == [7, 8, 5, 6, 5, 5]  # on any machine
    for other in splits[1:]:
        assert np.array_equal(splits[0].test, other.test)
    assert np.array_equal(splits[0].val, splits[1].val)


@pytest.mark.parametrize("second", [1, 10**3, 10**6, 10**9])
def test_moments_as_dates_or_times_of_the_data(second: int) -> None:
    day = 86_400 * second
    start = 16_071 * day  # 2014-01-01
    data = sequences([[start, start + day - 1, start + day, start + 2 * day]] * 2)
    for val, test in (
        ("2014-01-02", "2014-01-03"),
        (start + day, str(start + 2 * day)),
        ("2014-01-02T01:00:00+01:00", "2014-01-02 00:00:01"),
    ):
        split = global_time(data, 0.1, 0.1, val, test)
        assert (split.val.tolist(), split.test.tolist()) == ([2, 6], [3, 7])
    said = r"times go from 2014-01-01T00:00:00 \(\d+\) to 2014-01-03T00:00:00 \(\d+\)\.$"
    for moments in (
        *(("2013-12-31", "2014-01-03"), ("2014-01-01", "2014-01-03"), (start, start + day)),
        *(("2014-01-02", "2014-01-04"), ("2014-01-02", "2014-01-02"), (5, 6)),
    ):
        with pytest.raises(UserError, match=said):
            global_time(data, 0.1, 0.1, *moments)
    with pytest.raises(UserError, match=r"^in spring is no moment; .* such as 2014-01-31"):
        global_time(data, 0.1, 0.1, "in spring", "2014-01-03")


def test_moments_where_times_are_no_dates() -> None:
    data = sequences([[-(10**18), 5, 6, 10**18]])
    split = global_time(data, 0.1, 0.1, 5, 6)
    assert (split.val.tolist(), split.test.tolist()) == ([1], [2, 3])
    with pytest.raises(UserError, match=r"go from .*-1000000000000000000.* to .*1000000000000000"):
        global_time(data, 0.1, 0.1, 6, 5)


def test_data_without_parts_or_times() -> None:
    data = worlds.sequences([[1, 2, 3]])
    with pytest.raises(UserError, match="needs files, and this data set is read from none"):
        by_files(data)
    with pytest.raises(UserError, match="needs timestamps"):
        global_time(data, 0.1, 0.1, 1, 2)
