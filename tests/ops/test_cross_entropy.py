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

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def inputs(m: int, k: int, d: int, bias: bool, device: str, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(m, d), (k, d), *([(k,)] if bias else [])]
    return [
        (scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(device)
        for s in shapes
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("left_out", [0.0, 0.5])
@pytest.mark.parametrize(("m", "k", "chunk"), [(1, 1, 32), (37, 11, 8), (64, 50, 32), (5, 3, 1)])
def test_equals_pytorchs_with_gradients(
    m: int,
    k: int,
    chunk: int,
    left_out: float,
    bias: bool,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(cross_entropy, "MIN_ROWS", chunk)
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", {"cpu": 0, "cuda": 0})
    given = [x.requires_grad_() for x in inputs(m, k, 6, bias, device)]
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(0, k, (m,), generator=generator)
    absent = torch.rand(m, generator=generator) < left_out
    absent[0] = False
    targets = targets.masked_fill(absent, -1).to(device)
    assert bool(absent.any()) == (left_out > 0 and m > 1)
    table_bias = given[2] if bias else None
    got = linear_cross_entropy(given[0], given[1], table_bias, targets)
    wanted = F.cross_entropy(F.linear(given[0], given[1], table_bias), targets, ignore_index=-1)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    # Scaled, as the loss is by the number of targets on each process.
    for a, b in zip(
        torch.autograd.grad(3 * got, given), torch.autograd.grad(3 * wanted, given), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("behind", [1, 7, 100])
def test_states_that_fill_a_batch_up_change_nothing(behind: int) -> None:
    """Whatever they hold, as long as it is finite; and they are passed no gradient."""
    states, table, bias = inputs(20, 30, 6, True, "cpu")
    targets = torch.arange(20)
    more = torch.cat([states, 1e3 * torch.ones(behind, 6).double()])
    results = []
    for x, t in ((states, targets), (more, F.pad(targets, (0, behind), value=-1))):
        given = [x.requires_grad_(), table.requires_grad_(), bias.requires_grad_()]
        loss = linear_cross_entropy(*given, t)
        results.append([loss, *torch.autograd.grad(loss, given)])
    (plain, own, *rest), (filled, all_of_them, *others) = results
    assert not all_of_them[20:].any()
    for a, b in zip((filled, all_of_them[:20], *others), (plain, own, *rest), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_scores_far_apart_neither_overflow_nor_vanish() -> None:
    states, table = inputs(20, 30, 6, False, "cpu", scale=60.0)
    targets = torch.arange(20)
    got = linear_cross_entropy(states.float(), table.float(), None, targets)
    wanted = F.cross_entropy(states @ table.T, targets)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)
    assert wanted > 1000


def test_half_precision_products_keep_float32_sums() -> None:
    states, table = (x.float() for x in inputs(64, 5000, 32, False, "cpu", scale=0.3))
    targets = torch.arange(64)
    wanted = F.cross_entropy(F.linear(states, table), targets)
    with torch.autocast("cpu", torch.bfloat16):
        given = [states.requires_grad_(), table.requires_grad_()]
        got = linear_cross_entropy(given[0], given[1], None, targets)
    assert got.dtype == torch.float32
    assert abs(got - wanted) < 2e-3
    gradients = torch.autograd.grad(got, given)
    for gradient, exact in zip(
        gradients,
        torch.autograd.grad(F.cross_entropy(F.linear(*given), targets), given),
        strict=True,
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - exact).norm() < 0.02 * exact.norm()


def test_without_gradients_only_the_loss_is_computed() -> None:
    states, table = inputs(10, 7, 3, False, "cpu")
    targets = torch.arange(10) % 7
    assert not linear_cross_entropy(states, table, None, targets).requires_grad
    with torch.no_grad():
        assert not linear_cross_entropy(states.requires_grad_(), table, None, targets).requires_grad


def test_a_second_backward_pass_gives_the_same() -> None:
    given = [x.requires_grad_() for x in inputs(10, 7, 3, True, "cpu")]
    loss = linear_cross_entropy(*given, torch.arange(10) % 7)
    first = torch.autograd.grad(loss, given, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(loss, given), strict=True):
        assert torch.equal(a, b)


def test_the_loss_takes_this_way_for_tied_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were all scores asked for, a large catalogue would not fit."""
    states, table, bias = inputs(10, 7, 3, True, "cpu")
    loss, targets = CrossEntropy(torch.ones(7)), torch.arange(10) % 7 + 1
    wanted = loss(states, targets, lambda x, items=None: F.linear(x, table, bias))
    monkeypatch.setattr(TiedScores, "__call__", None)
    torch.testing.assert_close(loss(states, targets, TiedScores(table, bias)), wanted)
    # A target of 0 fills the batch up.
    filled = torch.cat([states, states]), F.pad(targets, (0, 10))
    torch.testing.assert_close(loss(*filled, TiedScores(table, bias)), wanted)


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


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read in kilobytes as on Linux")
def test_memory_does_not_grow_with_rows_times_items() -> None:
    """All scores would be 205 MB, and PyTorch holds them three times over; the table has 13 MB."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 150e6
