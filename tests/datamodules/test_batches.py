"""Batches against their construction in plain Python; order, shards and resuming of the loader."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from sigma.datamodules import batches, spans
from sigma.datamodules.batches import Batch, BatchLoader, FlatSequences, shuffled, tensors_of
from sigma.datamodules.spans import Spans
from sigma.errors import UserError
from tests.datamodules import worlds
from tests.runs.front_door import Patch

L = 5


def histories(seed: int = 0, users: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 9, n).tolist() for n in rng.integers(2, 13, users)]


def flat(data: list[list[int]]) -> FlatSequences:
    return worlds.flat(worlds.sequences(data), L)


def samples(data: list[list[int]]) -> list[tuple[int, int, int]]:
    """``(flat position, user, index in the history)`` of every position that has a history."""
    out, start = [], 0
    for user, history in enumerate(data):
        out += [(start + k, user, k) for k in range(1, len(history))]
        start += len(history)
    return out


def loader(n: int = 103, **settings: Any) -> BatchLoader:
    data = flat([[1] * (n + 1)])
    defaults = {"batch_size": 10, "shuffle": True, "seed": 3}
    return BatchLoader(
        lambda rows, _: data.batch(rows), torch.arange(1, n + 1), **{**defaults, **settings}
    )


def positions(batch: Batch) -> list[int]:
    """Of one long history the length before the cut is the position."""
    return batch.history_lengths.tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("evaluates", [True, False])
def test_batch_against_plain_python(seed: int, evaluates: bool) -> None:
    data = histories(seed)
    some = np.random.default_rng(seed).permutation(samples(data))[:40].tolist()
    batch = flat(data).batch(torch.tensor([c[0] for c in some]), evaluates)
    inputs = [data[user][:k][-L:] for _, user, k in some]
    ends = list(itertools.accumulate(map(len, inputs)))
    assert batch.items.tolist() == [item for row in inputs for item in row]
    assert batch.rows.offsets.tolist() == [0, *ends]
    assert batch.rows.longest == L  # whatever the batch holds
    assert batch.places.tolist() == [end - 1 for end in ends]
    assert batch.targets.tolist() == [data[user][k] for _, user, k in some]
    assert batch.num_targets == len(some)
    assert batch.users.tolist() == [user for _, user, _ in some]
    assert batch.history_lengths.tolist() == [k for _, _, k in some]
    assert batch.twins is None
    before = [item for _, user, k in some for item in data[user][:k]]
    assert batch.history.tolist() == (before if evaluates else [])
    assert {x.dtype for x in tensors_of(batch)} == {torch.int64}


@pytest.mark.parametrize("next_times", [True, False])
def test_rows_carry_times_beside_their_items(next_times: bool) -> None:
    """And that of the item after each, at a row's end the target's; no others."""
    data, rng = histories(), np.random.default_rng(0)
    times = [np.sort(rng.integers(0, 10**12, len(history))).tolist() for history in data]
    source = worlds.flat(worlds.sequences(data, times), L, timed=True)
    source.next_times = next_times
    some = rng.permutation(samples(data))[:40].tolist()
    batch = source.batch(torch.tensor([place for place, _, _ in some]))
    spans = [(place, min(place + 3, place - k + len(data[user]) - 1)) for place, user, k in some]
    window = source.window(torch.tensor(spans))
    before = [t for _, user, k in some for t in times[user][:k][-L:]]
    after = [t for _, user, k in some for t in times[user][1 : k + 1][-L:]]
    inside = [t for (_, user, k) in some for t in times[user][k:-1][:3]]
    beyond = [t for (_, user, k) in some for t in times[user][k + 1 :][:3]]
    for rows, now, later in ((batch.rows, before, after), (window.rows, inside, beyond)):
        assert rows.times is not None
        assert rows.times.tolist() == now
        assert (rows.next_times is None) != next_times
        if rows.next_times is not None:
            assert rows.next_times.tolist() == later
            assert {x.dtype for x in tensors_of(rows)} == {torch.int64}
    plain = flat(data).batch(torch.tensor([place for place, _, _ in some])).rows
    assert plain.times is plain.next_times is None


@pytest.mark.parametrize("seed", range(3))
def test_windows_against_plain_python(seed: int) -> None:
    data, rng = histories(seed), np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum([len(h) for h in data])])
    some = []  # user, first and stop in the history
    for user in rng.permutation(len(data)).tolist():
        first = int(rng.integers(0, len(data[user])))
        some.append((user, first, int(rng.integers(first + 1, len(data[user]) + 1))))
    spans = torch.tensor([[starts[u] + first, starts[u] + stop] for u, first, stop in some])
    batch = flat(data).window(spans, 12)
    rows = [data[user][first:stop] for user, first, stop in some]
    assert batch.items.tolist() == [item for row in rows for item in row]
    assert batch.rows.offsets.tolist() == [0, *itertools.accumulate(map(len, rows))]
    assert batch.rows.longest == 12
    assert flat(data).window(spans[:1]).rows.longest == L
    assert batch.users.tolist() == [user for user, _, _ in some]
    assert batch.history_lengths.tolist() == [stop for _, _, stop in some]
    assert batch.num_targets == 0
    assert not any(map(len, (batch.places, batch.targets, batch.history)))
    assert {x.dtype for x in tensors_of(batch)} == {torch.int64}


def test_epoch_visits_every_sample_once_in_an_order_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        one = loader(seed=seed)
        one.set_epoch(epoch)
        return [p for b in one for p in positions(b)]

    assert [len(positions(b)) for b in loader()] == [10] * 10 + [3]
    assert len(loader()) == 11
    assert sorted(order(3, 0)) == list(range(1, 104))
    assert order(3, 0) == order(3, 0)
    assert order(3, 0) != order(3, 1)
    assert order(3, 0) != order(4, 0)
    assert [p for b in loader(shuffle=False) for p in positions(b)] == list(range(1, 104))


def order_of(number: int, seed: int) -> np.ndarray:
    order = shuffled(number, torch.Generator().manual_seed(seed))
    return order(torch.arange(number)).numpy()


@pytest.mark.parametrize("number", [1, 2, 3, 10, 1000, 4097])
def test_an_order_that_is_not_listed_has_everything_once(number: int, monkeypatch: Patch) -> None:
    listed = order_of(number, 0)
    monkeypatch.setattr(batches, "LISTED", 0)
    computed = order_of(number, 0)
    for order in (listed, computed):
        assert sorted(order.tolist()) == list(range(number))
    if number > 100:
        assert not np.array_equal(listed, computed)
        assert not np.array_equal(computed, order_of(number, 1))
        # A place's is the same, alone or among others.
        order = shuffled(number, torch.Generator().manual_seed(0))
        assert order(torch.tensor([77, 3])).tolist() == computed[[77, 3]].tolist()


def test_an_order_that_is_not_listed_is_as_good_as_one_drawn(monkeypatch: Patch) -> None:
    """Where a thing stands, and what stands beside it, by chi-square over many orders."""
    monkeypatch.setattr(batches, "LISTED", 0)
    orders = np.stack([order_of(8, seed) for seed in range(1500)])
    for first in (0, 4, 7):
        for other in (None, (first + 1) % 8):
            seen = orders[:, first] * 8 + (0 if other is None else orders[:, other])
            counts = np.unique_counts(seen).counts
            freedom = 7 if other is None else 8 * 7 - 1
            assert len(counts) == freedom + 1
            statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
            assert statistic < freedom + 4.5 * np.sqrt(2 * freedom)
    # Of a long one: no trend, neighbours are strangers, a batch is spread evenly.
    order = order_of(100_000, 3)
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.015
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.015
    assert np.abs(np.diff(order)).mean() == pytest.approx(100_000 / 3, rel=0.01)
    tenths = np.bincount(order[:5000] // 10_000, minlength=10)
    assert ((tenths - 500) ** 2 / 500).sum() < 35


def test_the_epoch_is_resumed_and_shared_by_ranks_without_a_list(monkeypatch: Patch) -> None:
    monkeypatch.setattr(batches, "LISTED", 50)
    alone = [positions(batch) for batch in loader()]
    assert sorted(p for batch in alone for p in batch) == list(range(1, 104))
    ranks = zip(*(loader(rank=rank, world_size=2) for rank in range(2)), strict=True)
    assert [sorted(p for b in step for p in positions(b)) for step in ranks] == [
        sorted(batch) for batch in alone
    ]
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "position": 4})
    assert [positions(batch) for batch in resumed] == alone[4:]


@pytest.mark.parametrize("some", [1, 3, 1000])
def test_spans_are_the_positions_they_fill(some: int, monkeypatch: Patch) -> None:
    monkeypatch.setattr(spans, "SOME", some)
    starts, stops = np.array([0, 7, 9, 12, 20]), np.array([3, 5, 9, 19, 21])
    expected = [0, 1, 2, *range(12, 19), 20]
    filled = Spans(starts, stops)
    assert len(filled) == len(expected)
    assert filled.positions().tolist() == expected
    assert max(map(len, filled.parts())) <= some
    numbers = torch.randperm(len(expected))
    assert filled[numbers].tolist() == [expected[number] for number in numbers]
    nothing = Spans(starts[:0], stops[:0])
    assert (len(nothing), nothing.positions().tolist()) == (0, [])


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("n", [100, 103, 111])
def test_ranks_share_the_epoch_without_overlap(world_size: int, n: int) -> None:
    ranks = [list(loader(n, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [p for batches in ranks for b in batches for p in positions(b)]
    assert len(seen) == len(set(seen))
    complete = len(loader(n, world_size=world_size)) * 10 >= n
    assert len(seen) == (n if complete else n // 10 * 10)
    # Together the ranks take the very batches that one process takes.
    alone = [sorted(positions(b)) for b in loader(n)][: len(ranks[0])]
    together = [sorted(p for b in step for p in positions(b)) for step in zip(*ranks, strict=True)]
    assert together == alone
    with pytest.raises(UserError, match=r"A batch of 10 .* the 11 processes without a row"):
        loader(n, rank=0, world_size=11)


@pytest.mark.parametrize("taken", [0, 1, 7, 11])
def test_resumed_epoch_goes_on_with_the_next_batch(taken: int) -> None:
    first = loader()
    first.set_epoch(2)
    batches = iter(first)
    for _ in range(taken):
        next(batches)
    state = first.state_dict()
    rest = [positions(b) for b in batches]
    resumed = loader()
    resumed.load_state_dict(state)
    assert [positions(b) for b in resumed] == rest
    fresh = loader()
    for one in (resumed, fresh):
        one.set_epoch(3)
    assert [positions(b) for b in resumed] == [positions(b) for b in fresh]
