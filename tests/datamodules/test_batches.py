"""Batches against their construction in plain Python; order, shards and resuming of the loader."""

from typing import Any

import numpy as np
import pytest
import torch

from sigma.datamodules.batches import Batch, BatchLoader, FlatSequences
from sigma.datamodules.objectives import AllPositions, Cloze, NextItem, Objective, Twins
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.splits import leave_one_out
from sigma.errors import UserError

L = 5


def histories(seed: int = 0, users: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 9, n).tolist() for n in rng.integers(2, 13, users)]


def flat(data: list[list[int]], max_length: int = L) -> FlatSequences:
    offsets = np.concatenate([[0], np.cumsum([len(h) for h in data])])
    items = torch.tensor([i for h in data for i in h], dtype=torch.int32)
    return FlatSequences(items, torch.from_numpy(offsets), max_length)


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
@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("mask_history", [True, False])
def test_batch_against_plain_python(seed: int, trim: bool, mask_history: bool) -> None:
    data = histories(seed)
    chosen = samples(data)
    np.random.default_rng(seed).shuffle(chosen)
    chosen = chosen[:40]
    batch = flat(data).batch(torch.tensor([c[0] for c in chosen]), trim, mask_history)
    inputs = [data[user][:k][-L:] for _, user, k in chosen]
    width = max(map(len, inputs)) if trim else L
    assert batch.items.tolist() == [row + [0] * (width - len(row)) for row in inputs]
    assert batch.items.dtype == batch.targets.dtype == torch.int64
    assert batch.lengths.tolist() == [len(row) for row in inputs]
    assert batch.users.tolist() == [user for _, user, _ in chosen]
    assert batch.targets.tolist() == [data[user][k] for _, user, k in chosen]
    assert batch.target_rows.tolist() == list(range(len(chosen)))
    assert batch.target_columns.tolist() == [len(row) - 1 for row in inputs]
    assert batch.history_lengths.tolist() == [k for _, _, k in chosen]
    seen = list(zip(batch.seen_rows.tolist(), batch.seen_items.tolist(), strict=True))
    expected = [
        (row, item)
        for row, (_, user, k) in enumerate(chosen)
        for item in data[user][:k]
        if item != data[user][k]
    ]
    assert seen == (expected if mask_history else [])


def test_trimmed_and_padded_batches_hold_the_same() -> None:
    data = [[1, 2, 3], [4, 5]]
    at = torch.tensor([1, 2, 4])
    trimmed, padded = flat(data).batch(at, trim=True), flat(data).batch(at)
    assert trimmed.items.shape == (3, 2)
    assert padded.items.shape == (3, L)
    assert torch.equal(padded.items[:, :2], trimmed.items)
    assert not padded.items[:, 2:].any()


def test_epoch_visits_every_sample_once() -> None:
    batches = list(loader())
    assert [len(positions(b)) for b in batches] == [10] * 10 + [3]
    assert len(loader()) == 11
    assert sorted(p for b in batches for p in positions(b)) == list(range(1, 104))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        one = loader(seed=seed)
        one.set_epoch(epoch)
        return [p for b in one for p in positions(b)]

    assert order(3, 0) == order(3, 0)
    assert order(3, 0) != order(3, 1)
    assert order(3, 0) != order(4, 0)
    assert [p for b in loader(shuffle=False) for p in positions(b)] == list(range(1, 104))


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("n", [100, 103, 111])
def test_ranks_share_the_epoch_without_overlap(world_size: int, n: int) -> None:
    ranks = [list(loader(n, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [p for batches in ranks for b in batches for p in positions(b)]
    assert len(seen) == len(set(seen))
    whole = len(loader(n, world_size=world_size)) * 10 >= n
    assert len(seen) == (n if whole else n // 10 * 10)
    # Together the ranks take the very batches that one process takes.
    alone = [sorted(positions(b)) for b in loader(n)][: len(ranks[0])]
    together = [sorted(p for b in step for p in positions(b)) for step in zip(*ranks, strict=True)]
    assert together == alone


def test_fewer_rows_a_step_than_processes() -> None:
    with pytest.raises(UserError, match=r"A batch of 10 .* the 11 processes without a row"):
        loader(rank=0, world_size=11)


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
    resumed.set_epoch(3)
    fresh = loader()
    fresh.set_epoch(3)
    assert [positions(b) for b in resumed] == [positions(b) for b in fresh]


def test_sequences_too_large_for_the_device_stay_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = flat(histories())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 80_000))
    assert data.on(torch.device("cuda", 0)) is data
    assert data.on(torch.device("cpu")) is data


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("objective", [NextItem(), Twins(), AllPositions(), Cloze()])
def test_batches_gathered_on_the_device_are_the_same(objective: Objective) -> None:
    data = histories(users=200)
    host = flat(data)
    sequences = Sequences(
        host.items.numpy(), host.offsets.numpy(), np.arange(200), np.arange(8), None
    )
    rows = objective.setup(sequences, leave_one_out(sequences), L)[:64]
    batches = []
    for place in (host, host.on(torch.device("cuda", 0))):
        generator = torch.Generator().manual_seed(1)
        batches.append(objective.batch(place, rows, True, generator))
    assert batches[1].items.is_cuda
    for on_host, on_device in zip(*batches, strict=True):
        assert torch.equal(on_host, on_device.cpu())
