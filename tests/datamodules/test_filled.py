"""Batches filled up to a few sizes, as CUDA is given them: the same loss, gradients and ranks."""

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sigma.capture import Inputs
from sigma.datamodules import base
from sigma.datamodules.batches import Batch, filled, pinned, size_class, tensors_of
from sigma.datamodules.objectives import AllPositions, Cloze, NextItem, Objective, Twins
from sigma.datamodules.sets.simulated import Simulated
from sigma.datamodules.splits import leave_one_out
from sigma.losses import BCE, BPR, GBCE, CrossEntropy, SampledLoss, SampledSoftmax
from sigma.models.base import Model
from sigma.models.bert4rec import BERT4Rec
from sigma.models.fearec import FEARec
from sigma.models.hstu import HSTU
from sigma.models.mamba import Mamba
from sigma.models.sasrec import SASRec
from sigma.models.sigma import Sigma
from sigma.ops import Rows
from sigma.task import SequenceTask
from tests.datamodules.worlds import equal, flat, random_sequences

L, K = 6, 9
COUNTS = torch.arange(1, K + 1)
MAMBA = functools.partial(Mamba, state_size=3)
SMALL: dict[str, Any] = {"hidden_size": 8, "dropout": 0.0}
SIGMA: dict[str, Any] = {**SMALL, "mamba": MAMBA}
HEADS: dict[str, Any] = {**SMALL, "max_length": L, "inner_size": 5, "attention_dropout": 0.0}
TIMES: dict[str, Any] = {**SMALL, "max_length": L, "time": "target"}
# Each objective beside models that it trains.
CASES: dict[str, tuple[Objective, Any]] = {
    "next_item": (NextItem(), functools.partial(Sigma, r=2, **SIGMA)),
    "all_positions": (AllPositions(), functools.partial(Sigma, partial_flip=False, **SIGMA)),
    "all_positions, attention": (AllPositions(), functools.partial(SASRec, **HEADS)),
    "all_positions, times": (AllPositions(), functools.partial(HSTU, **TIMES)),
    "cloze": (Cloze(mask_ratio=0.25, fine_tune_ratio=0.0), functools.partial(BERT4Rec, **HEADS)),
    "cloze of the last item": (Cloze(fine_tune_ratio=1.0), functools.partial(BERT4Rec, **HEADS)),
    "twins": (Twins(), functools.partial(FEARec, contrast="us_x", frequency_weight=0.1, **HEADS)),
}
LOSSES = [CrossEntropy, BPR, BCE, GBCE, SampledSoftmax]


def batch_of(objective: Objective, size: int = 37, seed: int = 0) -> Batch:
    data = random_sequences(40, K, 4, 20, seed)
    rows = objective.setup(data, leave_one_out(data), L)[torch.arange(size)]
    return objective.batch(flat(data, L, timed=True), rows, torch.Generator().manual_seed(seed))


def model(name: str) -> Model:
    torch.manual_seed(0)
    built = CASES[name][1](K)
    with torch.no_grad():  # off its start, where zeros would hide an error
        for p in built.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return built.double()


def test_sizes_are_few_and_at_most_an_eighth_above() -> None:
    sizes = {size_class(number) for number in range(1, 10_000)}
    for number in range(1, 4000):
        size = size_class(number)
        assert number <= size <= number * 9 / 8
        assert size_class(size) == size <= size_class(number + 1)
        assert sum(number < size <= 2 * number for size in sizes) <= 8
    assert size_class(0) == 0


def begins_with(longer: Tensor, part: Tensor, rest: int, length: int) -> bool:
    """``part``, filled up to ``length`` with ``rest``."""
    return torch.equal(longer, torch.cat([part, torch.full((length - len(part),), rest)]))


def same_places(longer: Rows, rows: Rows, length: int) -> bool:
    """The same rows, their times filled up."""
    assert rows.times is not None
    assert rows.next_times is not None
    assert longer.times is not None
    assert longer.next_times is not None
    filled_up = begins_with(longer.times, rows.times, 0, length)
    filled_up &= begins_with(longer.next_times, rows.next_times, 0, length)
    return filled_up and longer[:2] == rows[:2]


def test_rows_without_times_stay_as_they_are() -> None:
    data = random_sequences(40, K, 4, 20, 0)
    batch = flat(data, L).batch(torch.from_numpy(leave_one_out(data).train[:9]))
    assert filled(batch).rows is batch.rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1, 2, 11, 37])
@pytest.mark.parametrize("name", CASES)
def test_a_filled_batch_begins_with_the_batch(name: str, size: int, seed: int) -> None:
    batch = batch_of(CASES[name][0], size, seed)
    longer = filled(batch)
    t, m = size_class(len(batch.items) + 1), len(batch.places)
    m = m if m == len(batch.users) else size_class(m)
    assert begins_with(longer.items, batch.items, 0, t)
    assert begins_with(longer.places, batch.places, t - 1, m)
    assert begins_with(longer.targets, batch.targets, 0, m)
    assert longer.num_targets == batch.num_targets == int((longer.targets > 0).sum())
    same = ("users", "history_lengths", "history")
    assert all(getattr(longer, part) is getattr(batch, part) for part in same)
    assert same_places(longer.rows, batch.rows, t)
    assert (longer.twins is None) == (batch.twins is None)
    if batch.twins is not None:
        (items, rows), (other, others) = batch.twins, longer.twins
        assert begins_with(other, items, 0, size_class(len(items) + 1))
        assert same_places(others, rows, len(other))
    # The place behind the last row is in no row.
    index = longer.rows.row_of(torch.arange(t))
    assert index[-1] == len(batch.users)
    assert torch.equal(index.bincount()[:-1], longer.rows.offsets.diff())
    assert longer.rows.positions(t).max() < longer.rows.longest


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
    assert padded == (name.startswith("all_positions") or name == "cloze")
    (want, gradients), (got, others) = outcome(name, batch, kind), outcome(name, longer, kind)
    assert want.item() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(others, gradients, rtol=1e-10, atol=1e-12)
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


@pytest.mark.parametrize("name", ["next_item", "cloze", "twins"])
def test_a_filled_batch_has_the_ranks_of_the_batch(name: str) -> None:
    data = random_sequences(40, K, 4, 20, seed=0)
    plain = flat(data, L, timed=True).batch(
        torch.from_numpy(leave_one_out(data).test), evaluates=True
    )
    batch = CASES[name][0].evaluation(plain, K)
    task = SequenceTask(model(name), torch.optim.Adam, CrossEntropy(COUNTS)).eval()
    with torch.no_grad():
        want, got = (task.evaluation_step("val", one) for one in (batch, filled(batch)))
    assert equal(want[:3], got[:3])
    assert equal(tuple(want.rankings.values()), tuple(got.rankings.values()))
    assert all(ranking.greater.unique().numel() > 3 for ranking in want.rankings.values())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_are_filled_for_cuda_alone(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Simulated(name="shop", max_length=12, batch_size=70, eval_batch_size=90)
    data.setup()
    calls: list[Batch] = []
    monkeypatch.setattr(base, "pinned", lambda batch: calls.append(batch) or batch)

    def firsts() -> list[Batch]:
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        return [next(iter(loader)) for loader in loaders]

    plain = firsts()
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
    batches = firsts()
    assert len(calls) == (3 if device == "cuda" else 0)
    want = [filled(batch) for batch in plain] if device == "cuda" else plain
    assert equal(tuple(batches), tuple(want))


def test_a_batch_for_the_device_lies_in_one_piece() -> None:
    for objective in (NextItem(), Twins()):
        batch = batch_of(objective)
        moved = pinned(batch, pin_memory=False)
        tensors, copies = list(tensors_of(batch)), list(tensors_of(moved))
        assert all(torch.equal(a, b) for a, b in zip(tensors, copies, strict=True))
        assert len({tensor.untyped_storage().data_ptr() for tensor in copies}) == 1
        assert (moved.twins is None) == (batch.twins is None)
        assert (moved.rows.longest, moved.num_targets) == (batch.rows.longest, batch.num_targets)
        on_meta = base.SequenceDataModule().transfer_batch_to_device(moved, torch.device("meta"), 0)
        assert [x.shape for x in tensors_of(on_meta)] == [x.shape for x in tensors]
        assert all(x.device.type == "meta" for x in tensors_of(on_meta))
        assert on_meta.rows.longest == batch.rows.longest
