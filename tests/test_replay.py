"""A training step as a replay, by a stand-in for CUDA graphs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sigma.capture import SIZES, CapturedStep, Inputs
from sigma.datamodules.batches import tensors_of
from sigma.models.base import Model
from sigma.ops import Rows, rows_of
from sigma.task import SequenceTask
from tests.runs.front_door import Logged
from tests.tasks import Fixed, small_task


class Tape:
    """Runs the work again, and puts its results where those of the recording lie."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.result, self.replays = work, work(), 0

    def replay(self) -> None:
        self.replays += 1
        for old, new in zip(self.result, self.work(), strict=True):
            old.copy_(new)


class Recorder:
    """Remembers the tapes, and the pools they were to use."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.pools: list[Any] = []

    def __call__(self, work: Callable[[], Any], pool: Any) -> tuple[Tape, Any, Any]:
        self.tapes.append(Tape(work))
        self.pools.append(pool)
        return self.tapes[-1], self.tapes[-1].result, "pool"

    @property
    def replays(self) -> list[int]:
        return [tape.replays for tape in self.tapes]


def captured(model: Model | None = None) -> tuple[SequenceTask, CapturedStep, Recorder]:
    task, recorder = small_task(model), Recorder()
    return task, CapturedStep(task.batch_loss, list(task.parameters()), recorder), recorder


def random_inputs(seed: int, rows: int = 20, width: int = 6) -> Inputs:
    """Rows of one length, so that all of as many rows are of one size."""
    items = torch.randint(1, 21, (rows * width,), generator=torch.Generator().manual_seed(seed))
    packed = rows_of(torch.full((rows,), width), 12)
    return Inputs(items, packed, packed.offsets[1:] - 1, items[packed.offsets[:-1]])


def outcome(loss: Tensor, task: SequenceTask) -> list[Tensor | None]:
    """The loss and all gradients."""
    task.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad for p in task.parameters())]


def expect_same_bits(loss: Tensor, task: SequenceTask, batch: Inputs) -> None:
    for a, b in zip(outcome(loss, task), outcome(task.batch_loss(batch), task), strict=True):
        assert a is b is None or torch.equal(a, b)


def test_the_second_batch_of_a_size_and_later_ones_are_replays() -> None:
    task, step, recorder = captured()
    for number in range(4):
        batch = random_inputs(number)
        loss = step(batch)
        assert recorder.replays == ([number] if number else [])
        recordings = list(step.recordings.values())
        for recording in recordings:  # copied, so that the batch's own memory is free
            for mine, new in zip(tensors_of(recording.inputs), tensors_of(batch), strict=True):
                assert torch.equal(mine, new)
                assert mine.data_ptr() != new.data_ptr()
        expect_same_bits(loss, task, batch)
    assert len(recordings) == 1


def test_what_a_replay_gave_is_not_written_over_by_the_next() -> None:
    task, step, _ = captured()
    step(random_inputs(0))
    first = outcome(step(random_inputs(1)), task)
    copies = [None if g is None else g.clone() for g in first]
    outcome(step(random_inputs(2)), task)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(first, copies, strict=True))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_gradients_of_replays_add_up(scale: float) -> None:
    """As trainer.accumulate_grad_batches has them, each loss divided."""
    task, step, recorder = captured()
    step(random_inputs(0))
    results = []
    for run in (step, task.batch_loss):
        task.zero_grad()
        for number in (1, 2):
            (scale * run(random_inputs(number))).backward()
        results.append([p.grad for p in task.parameters()])
    assert recorder.replays == [2]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
        assert scale != 1 or torch.equal(a, b)


def test_each_size_has_a_recording_up_to_a_limit() -> None:
    task, step, recorder = captured()
    for seed in range(3):
        for rows in range(1, SIZES + 4):
            batch = random_inputs(seed, rows)
            assert torch.equal(step(batch), task.batch_loss(batch))
    assert recorder.replays == [2] * SIZES
    assert recorder.pools == [None] + ["pool"] * (SIZES - 1)  # which all of them share
    assert len(step.recordings) == SIZES


def test_recordings_differ_by_whatever_they_are_bound_to() -> None:
    task, step, recorder = captured()
    batch = random_inputs(0)
    longer = batch._replace(rows=Rows(batch.rows.offsets, 13))
    batches = (
        batch,
        longer,
        batch._replace(places=batch.places[1:], targets=batch.targets[1:]),
        batch._replace(twins=(batch.items, batch.rows)),
        batch._replace(twins=(batch.items, longer.rows)),
    )
    for _ in range(2):
        for one in batches:
            assert torch.equal(step(one), task.batch_loss(one))
    assert recorder.replays == [1] * len(batches)


def test_twins_are_copied_for_a_replay() -> None:
    class Sum(Fixed):
        def extra_loss(self, *arguments: Any) -> Tensor:
            items, rows = arguments[-1]
            return (items.sum() + rows.offsets.sum()) * (1 + self.weight.sum())

    task, step, recorder = captured(Sum())
    for number in range(3):
        other = random_inputs(number + 10)
        batch = random_inputs(number)._replace(twins=(other.items, other.rows))
        assert torch.equal(step(batch), task.batch_loss(batch))
    assert recorder.replays == [2]


def test_a_parameter_that_the_loss_does_not_read_keeps_no_gradient() -> None:
    class Idle(Fixed):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.ones(2))
            self.still = nn.Parameter(torch.ones(2), requires_grad=False)
            self.late = nn.Parameter(torch.zeros(3))

        def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
            return super().forward(items, rows, places) + self.late

        def logits(self, states: Tensor, items: Tensor | None = None) -> Tensor:
            return states.sum(1, keepdim=True) * torch.arange(20.0)

    task, step, recorder = captured(Idle())
    step(random_inputs(0))
    expect_same_bits(step(random_inputs(1)), task, random_inputs(1))
    assert recorder.replays == [1]
    without = [name for name, p in task.model.named_parameters() if p.grad is None]
    assert without == ["idle", "still"]
    assert task.model.late.grad.abs().min() > 0


def test_a_step_that_cannot_be_recorded_runs_plainly_ever_after(caplog: Logged) -> None:
    task, tries = small_task(), []

    def record(work: Callable[[], Any], pool: Any) -> Any:
        tries.append(pool)
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with …")

    step = CapturedStep(task.batch_loss, list(task.parameters()), record)
    for seed in range(3):
        for rows in (5, 6):
            batch = random_inputs(seed, rows)
            expect_same_bits(step(batch), task, batch)
    assert len(tries) == 1
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "operation not permitted when stream is capturing" in caplog.text


def test_half_precision_has_recordings_of_its_own() -> None:
    task, step, recorder = captured()
    task.float()
    losses = set()
    for number in range(3):
        batch = random_inputs(number)
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = step(batch)
                expect_same_bits(loss, task, batch)
            losses.add(loss.item())
    assert recorder.replays == [2, 2]
    assert len(losses) == 6
    with torch.autocast("cpu", torch.float16):
        step(random_inputs(0))
    assert (len(step.recordings), len(step.seen)) == (2, 3)
