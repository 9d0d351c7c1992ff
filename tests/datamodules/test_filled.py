"""Batches filled up to a few sizes, as CUDA is given them: the same loss, gradients and ranks."""

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sigma.capture import Inputs
from sigma.datamodules import base, batches
from sigma.datamodules.batches import Batch, filled, size_class
from sigma.datamodules.objectives import AllPositions, Cloze, NextItem, Objective, Twins
from sigma.datamodules.sets.simulated import Simulated
from sigma.datamodules.splits import leave_one_out
from sigma.losses import BCE, BPR, GBCE, CrossEntropy, SampledLoss, SampledSoftmax
from sigma.models.base import Model
from sigma.models.bert4rec import BERT4Rec
from sigma.models.fearec import FEARec
from sigma.models.mamba import Mamba
from sigma.models.sasrec import SASRec
from sigma.models.sigma import Sigma
from sigma.task import SequenceTask
from tests.datamodules.worlds import flat, random_sequences

L, K = 6, 9
COUNTS = torch.arange(1, K + 1)
MAMBA = functools.partial(Mamba, state_size=3)
SMALL: dict[str, Any] = {"hidden_size": 8, "dropout": 0.0}
HEADS: dict[str, Any] = {**SMALL, "max_length": L, "inner_size": 5, "attention_dropout": 0.0}
# Each objective beside models that it trains.
CASES: dict[str, tuple[Objective, Any]] = {
    "next_item": (NextItem(), functools.partial(Sigma, mamba=MAMBA, r=2, **SMALL)),
    "all_positions": (
        AllPositions(),
        functools.partial(Sigma, mamba=MAMBA, partial_flip=False, **SMALL),
    ),
    "all_positions, attention": (AllPositions(), functools.partial(SASRec, **HEADS)),
    "cloze": (Cloze(mask_ratio=0.25, fine_tune_ratio=0.0), functools.partial(BERT4Rec, **HEADS)),
    "cloze of the last item": (Cloze(fine_tune_ratio=1.0), functools.partial(BERT4Rec, **HEADS)),
    "twins": (Twins(), functools.partial(FEARec, contrast="us_x", frequency_weight=0.1, **HEADS)),
}
LOSSES = [CrossEntropy, BPR, BCE, GBCE, SampledSoftmax]


def batch_of(objective: Objective, size: int = 37, seed: int = 0) -> Batch:
    data = random_sequences(40, K, 4, 20, seed)
    rows = objective.setup(data, leave_one_out(data), L)[:size]
    return objective.batch(flat(data, L), rows, torch.Generator().manual_seed(seed))


def model(name: str) -> Model:
    torch.manual_seed(0)
    built = CASES[name][1](K)
    with torch.no_grad():  # off its start, where zeros would hide an error
        for p in built.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return built.double()


# --- sizes ---


def test_a_size_is_at_most_an_eighth_above() -> None:
    for number in range(1, 5000):
        size = size_class(number)
        assert number <= size <= number * 9 / 8
        assert size_class(size) == size
        assert size <= size_class(number + 1)
    assert size_class(0) == 0


def test_there_are_few_sizes() -> None:
    sizes = {size_class(number) for number in range(1, 10_000)}
    for number in range(1, 4000):
        assert sum(number < size <= 2 * number for size in sizes) <= 8


# --- layout ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1, 2, 11, 37])
@pytest.mark.parametrize("name", CASES)
def test_a_filled_batch_begins_with_the_batch(name: str, size: int, seed: int) -> None:
    batch = batch_of(CASES[name][0], size, seed)
    longer = filled(batch)
    t, m = len(batch.items), len(batch.places)
    assert torch.equal(longer.items[:t], batch.items)
    assert not longer.items[t:].any()
    assert len(longer.items) == size_class(t + 1) > t
    assert longer.rows is batch.rows
    assert torch.equal(longer.places[:m], batch.places)
    assert torch.equal(longer.targets[:m], batch.targets)
    assert (longer.places[m:] == len(longer.items) - 1).all()
    assert not longer.targets[m:].any()
    assert bool((longer.places.diff() >= 0).all())
    assert longer.num_targets == batch.num_targets == int((longer.targets > 0).sum())
    if m == len(batch.users):
        assert len(longer.places) == m
    else:
        assert len(longer.places) == size_class(m)
    same = ("users", "history_lengths", "seen_rows", "seen_items")
    assert all(getattr(longer, part) is getattr(batch, part) for part in same)
    if batch.twins is None:
        assert longer.twins is None
    else:
        (items, rows), (other, same_rows) = batch.twins, longer.twins
        assert torch.equal(other[: len(items)], items)
        assert not other[len(items) :].any()
        assert len(other) == size_class(len(items) + 1) > len(items)
        assert same_rows is rows


def test_the_place_behind_the_last_row_is_in_no_row() -> None:
    for size in (1, 5, 37):
        longer = filled(batch_of(NextItem(), size))
        index = longer.rows.row_of(torch.arange(len(longer.items)))
        assert index[-1] == size
        assert torch.equal(index.bincount()[:size], longer.rows.offsets.diff())
        assert longer.rows.positions(len(longer.items)).max() < L


# --- results ---


def outcome(
    name: str, batch: Batch, kind: type = CrossEntropy
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The loss and each parameter's gradient."""
    loss = kind(COUNTS, **({} if kind is CrossEntropy else {"negatives": 3}))
    if isinstance(loss, SampledLoss):  # the same for a target, however many there are
        loss.negatives.forward = (  # type: ignore[method-assign]
            lambda targets: (targets[:, None] - 1 + torch.arange(1, 4)) % K + 1
        )
    task = SequenceTask(model(name), torch.optim.Adam, loss)
    inputs = Inputs(batch.items, batch.rows, batch.places, batch.targets, batch.twins)
    value = task.batch_loss(inputs)
    names, parameters = zip(*task.model.named_parameters(), strict=True)
    values = torch.autograd.grad(value, parameters, allow_unused=True)
    return value, dict(zip(names, values, strict=True))


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("name", CASES)
def test_a_filled_batch_has_the_loss_and_gradients_of_the_batch(name: str, kind: type) -> None:
    batch = batch_of(CASES[name][0])
    longer = filled(batch)
    padded = len(longer.places) > len(batch.places)
    assert padded == (name in ("all_positions", "all_positions, attention", "cloze"))
    (want, gradients), (got, others) = outcome(name, batch, kind), outcome(name, longer, kind)
    assert want.item() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    for parameter, gradient in gradients.items():
        if gradient is None:
            assert others[parameter] is None, parameter
            continue
        torch.testing.assert_close(
            others[parameter],
            gradient,
            rtol=1e-10,
            atol=1e-12,
            msg=lambda text, of=parameter: f"{of}: {text}",
        )
    assert sum(g is not None and bool(g.any()) for g in gradients.values()) > len(gradients) / 2


@pytest.mark.parametrize("kind", [BPR, SampledSoftmax])
def test_negatives_drawn_for_a_filled_batch_are_those_of_the_batch(kind: type) -> None:
    """Where each row has one target, so that as many are drawn."""
    batch = batch_of(NextItem())
    task = SequenceTask(model("next_item"), torch.optim.Adam, kind(COUNTS, negatives=2))
    values = []
    for one in (batch, filled(batch)):
        torch.manual_seed(1)
        values.append(task.batch_loss(Inputs(one.items, one.rows, one.places, one.targets)))
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mask_history", [False, True])
@pytest.mark.parametrize("name", ["next_item", "cloze", "twins"])
def test_a_filled_batch_has_the_ranks_of_the_batch(name: str, mask_history: bool) -> None:
    data = random_sequences(40, K, 4, 20, seed=0)
    plain = flat(data, L).batch(torch.from_numpy(leave_one_out(data).test), mask_history)
    batch = CASES[name][0].evaluation(plain, K)
    task = SequenceTask(model(name), torch.optim.Adam, CrossEntropy(COUNTS)).eval()
    with torch.no_grad():
        want, got = (task.evaluation_step("val", one) for one in (batch, filled(batch)))
    for a, b in zip(want, got, strict=True):
        assert torch.equal(a, b)
    assert want.greater.unique().numel() > 3


# --- where batches are filled ---


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_filled_for_cuda_alone(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Simulated(name="shop", max_length=12, batch_size=70, eval_batch_size=90)
    data.setup()
    pinned: list[Batch] = []
    monkeypatch.setattr(base, "pinned", lambda batch: pinned.append(batch) or batch)
    firsts = {}
    for trainer in (None, device):
        if trainer is not None:
            strategy = SimpleNamespace(root_device=torch.device(trainer))
            data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        firsts[trainer] = [next(iter(loader)) for loader in loaders]
    assert len(pinned) == (3 if device == "cuda" else 0)
    for plain, laid_out in zip(firsts[None], firsts[device], strict=True):
        want = filled(plain) if device == "cuda" else plain
        assert len(want.items) == len(laid_out.items)
        assert torch.equal(want.items, laid_out.items)
        assert torch.equal(want.targets, laid_out.targets)


def test_a_batch_for_the_device_lies_in_one_piece() -> None:
    for objective in (NextItem(), Twins()):
        batch = batch_of(objective)
        moved = batches.pinned(batch, pin_memory=False)
        tensors, copies = list(batches.tensors_of(batch)), list(batches.tensors_of(moved))
        assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
        assert len({tensor.untyped_storage().data_ptr() for tensor in copies}) == 1
        assert (moved.twins is None) == (batch.twins is None)
        assert (moved.rows.longest, moved.num_targets) == (batch.rows.longest, batch.num_targets)
        there = base.SequenceDataModule().transfer_batch_to_device(moved, torch.device("meta"), 0)
        assert [x.shape for x in batches.tensors_of(there)] == [x.shape for x in tensors]
        assert all(x.device.type == "meta" for x in batches.tensors_of(there))
        assert there.rows.longest == batch.rows.longest
