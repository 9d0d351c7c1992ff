"""Objectives: what is predicted from what, that nothing held out is seen, who may be trained."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from sigma.datamodules.batches import Batch, BatchLoader, FlatSequences
from sigma.datamodules.objectives import (
    AllPositions,
    Cloze,
    Counted,
    NextItem,
    Objective,
    Twins,
    windows,
)
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.splits import Split, global_time, leave_one_out
from sigma.errors import UserError

L, K = 6, 9


def sequences(seed: int = 0, users: int = 40) -> Sequences:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 25, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    n = int(offsets[-1])
    times = np.concatenate([np.sort(rng.integers(0, 1000, k)) for k in lengths])
    items = rng.integers(1, K + 1, n).astype(np.int32)
    return Sequences(items, offsets, times, np.arange(users), np.arange(K))


@pytest.fixture(params=[leave_one_out, global_time], ids=lambda f: f.__name__)
def world(request: pytest.FixtureRequest) -> tuple[Sequences, Split, FlatSequences]:
    data = sequences()
    flat = FlatSequences(torch.from_numpy(data.items), torch.from_numpy(data.offsets), L)
    return data, request.param(data), flat


def whole(
    objective: Objective, world: tuple[Sequences, Split, FlatSequences], seed: int = 0
) -> tuple[torch.Tensor, Batch]:
    """All rows of an epoch as one batch."""
    data, split, flat = world
    rows = objective.setup(data, split, L)
    return rows, objective.batch(flat, rows, True, torch.Generator().manual_seed(seed))


def test_windows_by_hand() -> None:
    got = windows(np.array([0, 10, 20, 30]), np.array([3, 17, 20, 42]), 6)
    assert got.tolist() == [[0, 3], [10, 11], [11, 17], [30, 36], [36, 42]]


def test_all_positions_predict_the_samples_of_next_item_once_each(world: tuple) -> None:
    data, split, _ = world
    _, batch = whole(AllPositions(), world)
    users = batch.users[batch.target_rows].tolist()
    predicted = Counter(zip(users, batch.targets.tolist(), strict=True))
    owner = np.searchsorted(data.offsets, split.train, side="right") - 1
    wanted = Counter(zip(owner.tolist(), data.items[split.train].tolist(), strict=True))
    assert predicted == wanted
    rows, _ = whole(AllPositions(), world)
    for target, row, column in zip(
        batch.targets.tolist(), batch.target_rows.tolist(), batch.target_columns.tolist(),
        strict=True,
    ):  # fmt: skip
        first = int(rows[row, 0])
        assert (
            batch.items[row, : column + 1].tolist()
            == data.items[first : first + column + 1].tolist()
        )
        assert target == data.items[first + column + 1]


def test_the_last_window_alone(world: tuple) -> None:
    """As SASRec's code: what lies before the last L items of a history is not trained on."""
    data, split, _ = world
    rows, batch = whole(AllPositions(last_window=True), world)
    stops = split.train_end - 1
    some = stops > data.offsets[:-1]
    assert rows[:, 1].tolist() == stops[some].tolist()
    assert rows[:, 0].tolist() == np.maximum(stops - L, data.offsets[:-1])[some].tolist()
    assert len(batch.targets) == int((rows[:, 1] - rows[:, 0]).sum())
    every, _ = whole(AllPositions(), world)
    assert len(rows) < len(every)


def test_processes_share_the_coin_but_not_the_masks() -> None:
    """Whether the last item alone is masked is drawn for the step, whoever holds its rows."""
    data = sequences(users=160)
    flat = FlatSequences(torch.from_numpy(data.items), torch.from_numpy(data.offsets), L)
    objective = Cloze(mask_ratio=0.5, fine_tune_ratio=0.5)
    rows = objective.setup(data, leave_one_out(data), L)

    def kinds(rank: int, world_size: int) -> list[bool]:
        def make(chosen: torch.Tensor, generator: torch.Generator) -> Batch:
            return objective.batch(flat, chosen, True, generator)

        loader = BatchLoader(make, rows, 16, True, 5, rank, world_size)
        return [
            bool((b.target_columns == b.lengths[b.target_rows] - 1).all())
            and len(b.targets) == len(b.lengths)
            for b in loader
        ]

    alone = kinds(0, 1)
    assert {True, False} == set(alone)
    assert kinds(0, 2) == kinds(1, 2) == alone


@pytest.mark.parametrize("objective", [NextItem(), AllPositions(), Cloze(), Twins(), Counted()])
def test_nothing_held_out_is_seen(objective: Objective, world: tuple) -> None:
    data, split, flat = world
    # Whatever stands in the held-out places must not reach any training batch.
    held = np.ones(len(data.items), dtype=bool)
    for user, end in enumerate(split.train_end):
        held[data.offsets[user] : end] = False
    other = data.items.copy()
    other[held] = other[held] % K + 1
    changed = Sequences(other, data.offsets, data.timestamps, data.user_ids, data.item_ids)
    flat_changed = FlatSequences(torch.from_numpy(other), torch.from_numpy(data.offsets), L)
    _, before = whole(objective, (data, split, flat))
    _, after = whole(objective, (changed, split, flat_changed))
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
    assert held.any()
    assert len(before.targets)


def test_cloze_masks_what_it_asks_for(world: tuple) -> None:
    data, split, flat = world
    objective = Cloze(mask_ratio=0.3, fine_tune_ratio=0.0, copies=50)
    rows, batch = whole(objective, world)
    plain = flat.window(rows, True)
    masked = batch.items != plain.items
    assert torch.equal(masked.nonzero(as_tuple=True)[0], batch.target_rows)
    assert torch.equal(masked.nonzero(as_tuple=True)[1], batch.target_columns)
    assert (batch.items[masked] == K + 1).all()
    assert torch.equal(batch.targets, plain.items[masked])
    real = torch.arange(batch.items.shape[1]) < batch.lengths[:, None]
    assert not (masked & ~real).any()
    per_row = masked.sum(1)
    assert per_row.min() == 1  # never a row without a target
    full = batch.lengths == L + 1
    # Of seven items at 0.3, given that a row without one gets one: 2.1 + 0.7^7.
    assert per_row[full].double().mean().item() == pytest.approx(2.1 + 0.7**7, abs=0.1)
    # Every training item of every history, its first and last among them, is visited and masked.
    spans = sum(int(b) - int(a) for a, b in rows[: len(rows) // 50].tolist())
    assert spans == int((split.train_end - data.offsets[:-1]).sum())
    again = objective.batch(flat, rows, True, torch.Generator().manual_seed(0))
    assert torch.equal(again.items, batch.items)
    other = objective.batch(flat, rows, True, torch.Generator().manual_seed(1))
    assert not torch.equal(other.items, batch.items)


def test_cloze_fine_tunes_on_the_last_item(world: tuple) -> None:
    _, batch = whole(Cloze(fine_tune_ratio=1.0), world)
    assert torch.equal(batch.target_rows, torch.arange(len(batch.lengths)))
    assert torch.equal(batch.target_columns, batch.lengths - 1)
    objective, kinds = Cloze(mask_ratio=0.99, fine_tune_ratio=0.25), []
    rows = objective.setup(*world[:2], L)
    for seed in range(400):
        batch = objective.batch(world[2], rows[:8], True, torch.Generator().manual_seed(seed))
        kinds.append(len(batch.targets) == 8)
    assert 0.15 < sum(kinds) / 400 < 0.35


@pytest.mark.parametrize("trim", [True, False])
def test_cloze_asks_for_the_next_item_by_a_mask_after_the_last(world: tuple, trim: bool) -> None:
    _, split, flat = world
    plain = flat.batch(torch.from_numpy(split.test), trim)
    asked = Cloze().evaluation(plain, K)
    assert asked.items.shape[1] == plain.items.shape[1] + 1
    for row, length in enumerate(plain.lengths.tolist()):
        assert asked.items[row, :length].tolist() == plain.items[row, :length].tolist()
        assert asked.items[row, length] == K + 1
        assert not asked.items[row, length + 1 :].any()
    assert torch.equal(asked.lengths, plain.lengths + 1)
    assert torch.equal(asked.target_columns, plain.lengths)
    assert torch.equal(asked.targets, plain.targets)
    # The place it is asked at is one that training has predicted, too, for the longest row as well.
    assert asked.target_columns.max() == L
    batch = whole(Cloze(fine_tune_ratio=1.0), world)[1]
    assert set(asked.target_columns.tolist()) <= set(batch.target_columns.tolist())


def test_twins_are_other_samples_of_the_same_target(world: tuple) -> None:
    data, split, flat = world
    objective = Twins()
    rows = objective.setup(data, split, L)
    targets = data.items[split.train]
    drawn = torch.stack(
        [objective.twins(rows, torch.Generator().manual_seed(s)) for s in range(300)]
    )
    for row in rows.tolist():
        same = {i for i in range(len(targets)) if targets[i] == targets[row] and i != row}
        got = Counter(drawn[:, row].tolist())
        assert set(got) <= (same or {row})
        if len(same) == 2:
            assert min(got.values()) > 100
    batch = objective.batch(flat, rows[5:15], True, torch.Generator())
    plain = flat.batch(torch.from_numpy(split.train[5:15]), True)
    assert batch.items.shape[0] == batch.lengths.shape[0] == 20
    assert torch.equal(batch.items[:10, : plain.items.shape[1]], plain.items)
    assert torch.equal(batch.targets, plain.targets)
    assert torch.equal(batch.target_rows, torch.arange(10))
    assert torch.equal(batch.target_columns, plain.lengths - 1)


def test_a_lone_target_is_its_own_twin() -> None:
    data = Sequences(
        np.array([1, 2, 3, 4, 5, 1, 2, 6, 7, 8], dtype=np.int32), np.array([0, 5, 10]), None,
        np.arange(2), np.arange(8),
    )  # fmt: skip
    objective = Twins()
    rows = objective.setup(data, leave_one_out(data), L)  # targets 2, 3 and 2, 6
    assert objective.twins(rows, torch.Generator()).tolist() == [2, 1, 0, 3]


class Model(nn.Module):
    name = "toy"


@pytest.mark.parametrize(
    ("objective", "has", "message"),
    [
        (AllPositions(), {"causal": False}, "toy is not causal: it would see the items"),
        (AllPositions(), {}, "Use objective=next_item"),
        (Cloze(), {"causal": True}, "needs a model with a mask token, and toy has none"),
        (NextItem(), {"count": 1}, "toy is counted, not trained; use objective=counted"),
        (Cloze(), {"count": 1, "mask_token": 3}, "toy is counted"),
        (NextItem(), {"mask_token": 3}, "toy predicts masked items; use objective=cloze"),
        (AllPositions(), {"mask_token": 3}, "toy predicts masked items"),
        (Counted(), {}, "trains nothing, and toy learns by gradients"),
    ],
)
def test_models_an_objective_refuses(objective: Objective, has: dict, message: str) -> None:
    model = Model()
    for name, value in has.items():
        setattr(model, name, value)
    with pytest.raises(UserError, match=message):
        objective.check(model)


def test_models_an_objective_takes(caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    NextItem().check(model)
    model.causal = True  # type: ignore[assignment]
    AllPositions().check(model)
    assert not caplog.records
    model.causal, model.leaks_on_purpose = False, True  # type: ignore[assignment]
    AllPositions().check(model)
    assert "although it sees the items it must predict" in caplog.text
