"""Objectives: what is predicted from what, that nothing held out is seen, who may be trained."""

import functools
import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sigma.datamodules import objectives
from sigma.datamodules.batches import Batch, BatchLoader, FlatSequences
from sigma.datamodules.objectives import AllPositions, Cloze, Counted, NextItem, Objective, Twins
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.splits import Split, global_time, leave_one_out
from sigma.errors import UserError
from sigma.models.base import Model
from sigma.ops.rows import rows_of
from tests.datamodules.worlds import equal, flat, random_sequences, sequences

L, K = 6, 9


@pytest.fixture(params=[leave_one_out, global_time], ids=lambda f: f.__name__)
def world(request: pytest.FixtureRequest) -> tuple[Sequences, Split, FlatSequences]:
    data = random_sequences(40, K, 2, 25, seed=0)
    return data, request.param(data), flat(data, L)


def epoch(
    objective: Objective, world: tuple[Sequences, Split, FlatSequences], seed: int = 0
) -> tuple[torch.Tensor, Batch]:
    """All rows of an epoch as one batch."""
    data, split, histories = world
    every = objective.setup(data, split, L)
    rows = every[torch.arange(len(every))]
    return rows, objective.batch(histories, rows, torch.Generator().manual_seed(seed))


def test_windows_by_hand() -> None:
    got = objectives.windows(np.array([0, 10, 20, 30]), np.array([3, 17, 20, 42]), 6)
    assert got.tolist() == [[0, 3], [10, 11], [11, 17], [30, 36], [36, 42]]


def test_all_positions_predict_the_samples_of_next_item_once_each(world: tuple) -> None:
    data, split, _ = world
    rows, batch = epoch(AllPositions(), world)
    users = batch.users[batch.rows.row_of(torch.arange(len(batch.items)))].tolist()
    predicted = Counter(zip(users, batch.targets.tolist(), strict=True))
    owner = np.searchsorted(data.offsets, split.train, side="right") - 1
    expected = Counter(zip(owner.tolist(), data.items[split.train].tolist(), strict=True))
    assert predicted == expected
    assert equal(batch.rows, rows_of(rows[:, 1] - rows[:, 0], L))
    assert batch.places.tolist() == list(range(len(batch.items)))
    assert batch.num_targets == len(batch.targets) == len(split.train)
    read = [data.items[first:stop] for first, stop in rows.tolist()]
    after = [data.items[first + 1 : stop + 1] for first, stop in rows.tolist()]
    assert batch.items.tolist() == np.concatenate(read).tolist()
    assert batch.targets.tolist() == np.concatenate(after).tolist()


def test_the_last_window_alone(world: tuple) -> None:
    """As SASRec's code: what lies before the last L items of a history is not trained on."""
    data, split, _ = world
    rows, batch = epoch(AllPositions(last_window=True), world)
    stops = split.train_end - 1
    some = stops > data.offsets[:-1]
    assert rows[:, 1].tolist() == stops[some].tolist()
    assert rows[:, 0].tolist() == np.maximum(stops - L, data.offsets[:-1])[some].tolist()
    assert len(batch.targets) == int((rows[:, 1] - rows[:, 0]).sum())
    assert len(rows) < len(epoch(AllPositions(), world)[0])


def test_processes_share_the_coin_but_not_the_masks() -> None:
    """Whether the last item alone is masked is one draw for the step, whoever holds its rows."""
    data = random_sequences(160, K, 2, 25, seed=0)
    objective = Cloze(mask_ratio=0.5, fine_tune_ratio=0.5)
    rows = objective.setup(data, leave_one_out(data), L)
    make = functools.partial(objective.batch, flat(data, L))

    def kinds(rank: int, world_size: int) -> list[bool]:
        loader = BatchLoader(make, rows, 16, True, 5, rank, world_size)
        return [equal(b.places, b.rows.offsets[1:] - 1) for b in loader]

    alone = kinds(0, 1)
    assert {True, False} == set(alone)
    assert kinds(0, 2) == kinds(1, 2) == alone


@pytest.mark.parametrize("objective", [NextItem(), AllPositions(), Cloze(), Twins(), Counted()])
def test_nothing_held_out_is_seen(objective: Objective, world: tuple) -> None:
    data, split, _ = world
    # Whatever stands in the held-out places must not reach any training batch.
    other = data.items.copy()
    for start, stop in zip(split.train_end, data.offsets[1:], strict=True):
        other[start:stop] = other[start:stop] % K + 1
    assert (other != data.items).any()
    changed = replace(data, items=other)
    _, before = epoch(objective, world)
    assert equal(before, epoch(objective, (changed, split, flat(changed, L)))[1])
    assert len(before.targets)


def test_cloze_masks_what_it_asks_for(world: tuple) -> None:
    data, split, histories = world
    objective = Cloze(mask_ratio=0.3, fine_tune_ratio=0.0, copies=50)
    rows, batch = epoch(objective, world)
    plain = histories.window(rows, L + 1)
    assert equal(batch.rows, plain.rows)
    assert batch.rows.longest == L + 1
    masked = batch.items != plain.items
    row_of = batch.rows.row_of(batch.places)
    assert torch.equal(masked.nonzero().squeeze(1), batch.places)
    assert (batch.items[masked] == K + 1).all()
    assert torch.equal(batch.targets, plain.items[masked])
    assert batch.num_targets == len(batch.targets)
    lengths = batch.rows.offsets.diff()
    per_row = row_of.bincount(minlength=len(rows))
    assert per_row.min() == 1  # never a row without a target
    full = lengths == L + 1
    # Of seven items at 0.3, given that a row without one gets one: 2.1 + 0.7^7.
    assert per_row[full].double().mean().item() == pytest.approx(2.1 + 0.7**7, abs=0.1)
    # And each of the seven alike, the first and the last as well.
    at = batch.rows.positions(len(batch.items))[batch.places]
    at = at[full[row_of]]
    shares = torch.bincount(at, minlength=L + 1) / full.sum()
    assert (shares - (0.3 + 0.7**7 / 7)).abs().max() < 0.06
    # Every training item of every history, its first and last among them, is visited and masked.
    spans = sum(int(b) - int(a) for a, b in rows[: len(rows) // 50].tolist())
    assert spans == int((split.train_end - data.offsets[:-1]).sum())
    assert equal(epoch(objective, world)[1], batch)
    assert not torch.equal(epoch(objective, world, seed=1)[1].items, batch.items)


def test_cloze_masks_one_item_at_random_where_none_was_drawn(world: tuple) -> None:
    _, _, histories = world
    objective = Cloze(mask_ratio=1e-12, fine_tune_ratio=0.0, copies=200)
    rows, batch = epoch(objective, world)
    lengths = rows[:, 1] - rows[:, 0]
    assert torch.equal(batch.rows.row_of(batch.places), torch.arange(len(rows)))
    at = batch.rows.positions(len(batch.items))[batch.places]
    for length in range(1, L + 2):
        counts = torch.bincount(at[lengths == length], minlength=length).double()
        assert len(counts) == length
        assert (counts / counts.sum() - 1 / length).abs().max() < 0.05
    assert torch.equal(batch.targets, histories.window(rows, L + 1).items[batch.places])


def test_cloze_fine_tunes_on_the_last_item(world: tuple) -> None:
    rows, batch = epoch(Cloze(fine_tune_ratio=1.0), world)
    assert torch.equal(batch.places, batch.rows.offsets[1:] - 1)
    assert torch.equal(batch.targets, world[2].items[rows[:, 1] - 1].long())
    objective = Cloze(mask_ratio=0.99, fine_tune_ratio=0.25)
    batches = [epoch(objective, world, seed)[1] for seed in range(400)]
    assert 0.15 < sum(len(batch.targets) == len(rows) for batch in batches) / 400 < 0.35


@pytest.mark.parametrize(("mask_ratio", "fine_tune_ratio"), [(0.4, 0.0), (0.1, 0.0), (0.4, 1.0)])
def test_recboles_masks_are_hidden_and_partly_scored(
    mask_ratio: float, fine_tune_ratio: float, world: tuple
) -> None:
    """Its transform keeps the last int(mask_ratio L) masks, its loss those at indices above 0."""
    objective = Cloze(mask_ratio, fine_tune_ratio, copies=20, recbole_masks=True)
    rows, batch = epoch(objective, world)
    plain = world[2].window(rows, L + 1).items
    masked, bounds = batch.items == K + 1, batch.rows.offsets.tolist()
    assert torch.equal(batch.items[~masked], plain[~masked])
    most, scored, silent = int(mask_ratio * L), [], 0
    for start, stop in itertools.pairwise(bounds):
        indices = [t for t in range(stop - start) if masked[start + t]]
        if fine_tune_ratio:
            assert indices == [stop - start - 1]
        silent += not indices
        scored += [start + t for t in indices[len(indices) - min(most, len(indices)) :] if t > 0]
    assert bool(silent) != bool(fine_tune_ratio)  # no mask is forced on a row
    if not scored:  # int(0.1 · 6) masks: RecBole has no loss here
        scored = masked.nonzero().squeeze(1).tolist()
    assert batch.places.tolist() == scored
    assert torch.equal(batch.targets, plain[batch.places].long())
    assert batch.num_targets == len(scored)
    if not fine_tune_ratio and most:
        assert masked.double().mean() == pytest.approx(mask_ratio, abs=0.02)
        assert len(scored) < 0.9 * masked.sum()


def test_cloze_asks_for_the_next_item_by_a_mask_after_the_last(world: tuple) -> None:
    _, split, histories = world
    plain = histories.batch(torch.from_numpy(split.test), evaluates=True)
    answer = Cloze().evaluation(plain, K)
    lengths = plain.rows.offsets.diff()
    expected = [[*row.tolist(), K + 1] for row in plain.items.split(lengths.tolist())]
    assert answer.items.tolist() == [item for row in expected for item in row]
    assert equal(answer.rows, rows_of(lengths + 1, L + 1))
    assert torch.equal(answer.places, answer.rows.offsets[1:] - 1)
    same = {name: getattr(plain, name) for name in ("items", "rows", "places")}
    assert equal(answer._replace(**same), plain)
    # It reads at a place that training has predicted, too, in the longest row as well.
    assert lengths.max() == L
    batch = epoch(Cloze(fine_tune_ratio=1.0), world)[1]
    assert batch.rows.longest == answer.rows.longest
    trained = set((batch.rows.offsets.diff() - 1).tolist())
    assert set(lengths.tolist()) <= trained


def test_twins_are_other_samples_of_the_same_target(world: tuple) -> None:
    data, split, histories = world
    objective = Twins()
    rows = objective.setup(data, split, L)
    targets = data.items[split.train]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(300)]
    draws = torch.stack([objective.twins(rows, generator) for generator in seeds])
    for row in rows.tolist():
        same = {i for i in range(len(targets)) if targets[i] == targets[row] and i != row}
        got = Counter(draws[:, row].tolist())
        assert set(got) <= (same or {row})
        if len(same) == 2:
            assert min(got.values()) > 100
    batch = objective.batch(histories, rows[5:15], torch.Generator().manual_seed(3))
    plain = histories.batch(torch.from_numpy(split.train[5:15]))
    assert equal(batch._replace(twins=None), plain)
    other = objective.twins(rows[5:15], torch.Generator().manual_seed(3))
    twins = histories.batch(torch.from_numpy(split.train)[other])
    assert torch.equal(twins.targets, plain.targets)
    assert equal(batch.twins, (twins.items, twins.rows))


def test_a_lone_target_is_its_own_twin() -> None:
    data = sequences([[1, 2, 3, 4, 5], [1, 2, 6, 7, 8]])
    objective = Twins()
    rows = objective.setup(data, leave_one_out(data), L)  # targets 2, 3 and 2, 6
    assert objective.twins(rows, torch.Generator()).tolist() == [2, 1, 0, 3]


def toy(**traits: Any) -> Model:
    model = Model()
    model.__dict__.update({"name": "toy", **traits})
    return model


@pytest.mark.parametrize(
    ("objective", "has", "message"),
    [
        (AllPositions(), {"causal": False}, "toy is not causal: it would see the items"),
        (AllPositions(), {}, "Use objective=next_item"),
        (Cloze(), {"causal": True}, "needs a model with a mask token, and toy has none"),
        (NextItem(), {"counted": True}, "toy is counted, not trained; use objective=counted"),
        (Twins(), {"counted": True}, "toy is counted, not trained; use objective=counted"),
        (Cloze(), {"counted": True, "mask_token": 3}, "toy is counted"),
        (NextItem(), {"mask_token": 3}, "toy predicts masked items; use objective=cloze"),
        (AllPositions(), {"mask_token": 3}, "toy predicts masked items"),
        (Counted(), {}, "trains nothing, and toy learns by gradients"),
    ],
)
def test_models_an_objective_refuses(objective: Objective, has: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective.check(toy(**has))


def test_models_an_objective_takes(caplog: pytest.LogCaptureFixture) -> None:
    NextItem().check(toy())
    Twins().check(toy())
    Cloze().check(toy(mask_token=3))
    Counted().check(toy(counted=True))
    AllPositions().check(toy(causal=True))
    assert not caplog.records
    AllPositions().check(toy(leaks_on_purpose=True))
    assert "although it sees the items it must predict" in caplog.text
