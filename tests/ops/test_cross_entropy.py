"""Cross entropy in chunks against PyTorch's over the whole matrix: loss, gradients, memory."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.losses import CrossEntropy
from sigma.ops import cross_entropy
from sigma.ops.cross_entropy import linear_cross_entropy
from sigma.ops.scores import TiedScores
from tests.ops.cases import no_cuda

Patch = pytest.MonkeyPatch


def inputs(m: int, k: int, d: int, bias: bool, device: str = "cpu") -> list[Tensor]:
    """States (m, d), table (k, d), and a bias (k,)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(m, d), (k, d), *([(k,)] if bias else [])]
    draws = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return [x.to(device).requires_grad_() for x in draws]


def check(loss: Tensor, want: Tensor, leaves: list[Tensor], scale: float = 1.0) -> None:
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(scale * x, leaves) for x in (loss, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_cuda])])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("left_out", [0.0, 0.5])
@pytest.mark.parametrize("shape", [(1, 1, 32), (37, 11, 8), (64, 50, 32), (5, 3, 1)])
def test_equals_pytorchs_with_gradients(
    shape: tuple[int, int, int], left_out: float, bias: bool, device: str, monkeypatch: Patch
) -> None:
    m, k, chunk = shape
    monkeypatch.setattr(cross_entropy, "MIN_ROWS", chunk)
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", {"cpu": 0, "cuda": 0})
    leaves = inputs(m, k, 6, bias, device)
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, k, (m,), generator=generator)
    absent = torch.rand(m, generator=generator) < left_out
    absent[0] = False
    assert bool(absent.any()) == (left_out > 0 and m > 1)
    targets = targets.masked_fill(absent, -1).to(device)
    states, table, table_bias = [*leaves, None][:3]
    want = F.cross_entropy(F.linear(states, table, table_bias), targets, ignore_index=-1)
    # Scaled, as the loss is by the number of targets on each process.
    check(linear_cross_entropy(states, table, table_bias, targets), want, leaves, 3.0)


@pytest.mark.parametrize("behind", [1, 7, 100])
def test_states_that_fill_a_batch_up_change_nothing(behind: int) -> None:
    """Whatever they hold, as long as it is finite; and they are passed no gradient."""
    states, table, bias = leaves = inputs(20, 30, 6, True)
    targets = torch.arange(20)
    filler = torch.full((behind, 6), 1e3, dtype=torch.float64, requires_grad=True)
    filled = linear_cross_entropy(
        torch.cat([states, filler]), table, bias, F.pad(targets, (0, behind), value=-1)
    )
    (grad,) = torch.autograd.grad(filled, filler, retain_graph=True)
    assert not grad.any()
    check(filled, linear_cross_entropy(states, table, bias, targets), leaves)


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    states, table = (60 * x for x in inputs(20, 30, 6, False))
    targets = torch.arange(20)
    loss = linear_cross_entropy(states.float(), table.float(), None, targets)
    want = F.cross_entropy(states @ table.T, targets)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0)
    assert want > 1000


def test_half_precision_products_keep_float32_sums() -> None:
    leaves = [(0.3 * x).detach().float().requires_grad_() for x in inputs(64, 5000, 32, False)]
    targets = torch.arange(64)
    want = F.cross_entropy(F.linear(*leaves), targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(*leaves, None, targets)
    assert loss.dtype == torch.float32
    assert abs(loss - want) < 2e-3
    grads, exact = torch.autograd.grad(loss, leaves), torch.autograd.grad(want, leaves)
    for a, b in zip(grads, exact, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


def test_gradients_only_where_they_are_asked_for_and_as_often() -> None:
    leaves, targets = inputs(10, 7, 3, True), torch.arange(10) % 7
    assert not linear_cross_entropy(*(x.detach() for x in leaves), targets).requires_grad
    with torch.no_grad():
        assert not linear_cross_entropy(*leaves, targets).requires_grad
    loss = linear_cross_entropy(*leaves, targets)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, leaves)))


def test_the_loss_takes_this_way_for_tied_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were all scores asked for, a large catalogue would not fit."""
    states, table, bias = inputs(10, 7, 3, True)
    loss, targets = CrossEntropy(torch.ones(7)), torch.arange(10) % 7 + 1
    want = loss(states, targets, lambda x, items=None: F.linear(x, table, bias))
    monkeypatch.setattr(TiedScores, "__call__", None)
    torch.testing.assert_close(loss(states, targets, TiedScores(table, bias)), want)
    # A target of 0 fills the batch up.
    filled = torch.cat([states, states]), F.pad(targets, (0, 10))
    torch.testing.assert_close(loss(*filled, TiedScores(table, bias)), want)


LARGE = """
import resource, torch
from sigma.ops.cross_entropy import linear_cross_entropy
torch.manual_seed(0)
states, table = torch.randn(256, 16, requires_grad=True), torch.randn(200_000, 16) * 0.1
table.requires_grad_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear_cross_entropy(states, table, None, torch.arange(256)).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in kilobytes as on Linux")
def test_memory_does_not_grow_with_rows_times_items() -> None:
    """All scores would be 205 MB, and PyTorch holds them three times over; the table has 13 MB."""
    command = [sys.executable, "-c", LARGE]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) * 1024 < 150e6
