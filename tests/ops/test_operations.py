"""The operations as models call them, and what PyTorch alone makes of long and short rows."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sigma.models.layers import GRU
from sigma.ops import (
    Rows,
    attend,
    blocked,
    causal_conv,
    gru,
    pointwise_attend,
    reference,
    rows_of,
    selective_scan,
)
from sigma.ops.inputs import Pointwise
from sigma.ops.pointwise import pointwise_op
from sigma.ops.registry import Kernels
from sigma.ops.scan import scan_op
from tests.ops import cases
from tests.ops.cases import ROWS, attend_inputs, draws, rows_case, same, scan_inputs

BACKENDS = ["blocked", pytest.param("cpu", marks=cases.no_compiler)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The backend that ``auto`` comes to."""
    if request.param == "blocked":
        monkeypatch.setattr("sigma.ops.dispatch.native_library", lambda: (None, ""))
    return str(request.param)


def scalar_scan(values: list[Tensor], lengths: list[int]) -> list[list[float]]:
    """The equations of Mamba's algorithm 2, one number at a time."""
    u, dt, A, B, C, D, z, bias = (x.tolist() for x in values)
    y, t = [], 0
    for length in lengths:
        states = [[0.0] * len(A[0]) for _ in A]
        for _ in range(length):
            out = []
            for d in range(len(A)):
                delta = math.log1p(math.exp(dt[t][d] + bias[d]))
                total = D[d] * u[t][d]
                for n in range(len(A[d])):
                    decay = math.exp(delta * A[d][n])
                    states[d][n] = decay * states[d][n] + delta * B[t][n] * u[t][d]
                    total += C[t][n] * states[d][n]
                out.append(total * z[t][d] / (1 + math.exp(-z[t][d])))
            y.append(out)
            t += 1
    return y


def test_the_reference_scan_equals_scalar_loops() -> None:
    rows, _ = rows_case("mixed")
    x = scan_inputs(int(rows.offsets[-1]), 3, 4)
    want = torch.tensor(scalar_scan(list(x), ROWS["mixed"][0]), dtype=torch.float64)
    torch.testing.assert_close(reference.selective_scan(x, rows.offsets), want)
    torch.testing.assert_close(selective_scan(*x, rows, backend="reference"), want)


def test_scan_gradients_against_finite_differences(backend: str) -> None:
    rows = rows_of(torch.tensor([3, 1]))
    x = tuple(scan_inputs(4, 3, 4))
    assert torch.autograd.gradcheck(lambda *values: selective_scan(*values, rows), x)


def test_half_precision_is_computed_in_float32(backend: str) -> None:
    rows = rows_of(torch.tensor([40, 25]))
    operations: list[tuple[Any, Callable[..., Tensor], Callable[..., Tensor]]] = [
        (scan_inputs(65), lambda *x: selective_scan(*x, rows), reference.selective_scan),
        (cases.conv_inputs(65), lambda *x: causal_conv(*x[:3], rows, x[3]), reference.causal_conv),
        (cases.gru_inputs(65), lambda *x: gru(*x, rows), reference.gru),
        (attend_inputs(rows, 65), lambda q, k, v, *_: attend(q, k, v, rows), reference.attend),
        (
            cases.pointwise_inputs(rows, 65, d=1),
            lambda q, k, v, *x: pointwise_attend(q, k, v, rows, x[0], x[4], *x[1:4]),
            reference.pointwise_attend,
        ),
    ]
    for x, operation, exact in operations:
        half = {
            k: v.detach().to(torch.bfloat16 if len(v) == 65 else torch.float32)
            for k, v in cases.leaves_of(x).items()
        }
        y = operation(*x._replace(**half))
        want = exact(x._replace(**{k: v.double() for k, v in half.items()}), rows.offsets)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.double(), want, rtol=2**-7, atol=1e-2)


@pytest.mark.parametrize("bias", [True, False])
def test_stacked_grus_are_torchs_on_each_row(backend: str, bias: bool) -> None:
    rows, _ = rows_case("mixed")
    lengths = ROWS["mixed"][0]
    torch.manual_seed(0)
    peer = torch.nn.GRU(4, 5, num_layers=2, bias=bias)
    torch.manual_seed(0)
    module = GRU(4, 5, num_layers=2, bias=bias)
    torch.testing.assert_close(peer.state_dict(), module.state_dict(), rtol=0, atol=0)
    x = draws()(sum(lengths), 4)
    want = torch.cat([peer.double()(part)[0] for part in x.split(lengths) if len(part)])
    module = module.double()
    y = module(x, rows)
    same(y, want, [x, *module.parameters()], x, *peer.parameters())


def test_attention_finds_the_queries_of_each_row(backend: str) -> None:
    rows, size = rows_case("mixed")
    x = attend_inputs(rows, size)
    torch.testing.assert_close(attend(*x[:3], rows), reference.attend(x, rows.offsets))
    some = x._replace(q=x.q[::2], places=x.places[::2].clone())
    want = reference.attend(some, rows.offsets)
    torch.testing.assert_close(attend(*some[:3], rows, some.places), want)


def test_dropout_is_drawn_from_pytorchs_generator(backend: str) -> None:
    rows = rows_of(torch.tensor([9, 9]))
    x = [draws()(18, 2, 4).detach() for _ in range(3)]
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(attend(*x, rows, dropout=0.5))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_blocks_hold_every_row_once_and_little_padding() -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 200, (3000,), generator=generator).sort().values.tolist()
    blocks = blocked.block_rows(lengths, lambda n: 8 * n)
    assert [i for first, last in blocks for i in range(first, last)] == list(range(3000))
    cells = sum((last - first) * lengths[last - 1] for first, last in blocks)
    assert cells < 1.35 * sum(lengths)
    assert blocked.block_rows([5], lambda n: 2**40) == [(0, 1)]
    assert blocked.block_rows([5, 5], lambda n: 2**40) == [(0, 1), (1, 2)]


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, size = rows_case("many")
    x = scan_inputs(size)
    y = scan_op(x, rows, "blocked")
    grads = cases.weighted_gradients(y, list(x))
    monkeypatch.setattr(blocked, "BLOCK_BYTES", 1)
    again = scan_op(x, rows, "blocked")
    torch.testing.assert_close(again, y)
    torch.testing.assert_close(cases.weighted_gradients(again, list(x)), grads)


def test_a_long_row_forgets_nothing(backend: str) -> None:
    """Ten thousand places, beside the row cut in two; the unit beside PyTorch's."""
    size = 10_000
    values = [v.detach() for v in scan_inputs(size, 4, 2)]
    long, halves = rows_of(torch.tensor([size])), rows_of(torch.tensor([size // 2] * 2))
    y, cut = selective_scan(*values, long), selective_scan(*values, halves)
    torch.testing.assert_close(y[: size // 2], cut[: size // 2])
    assert not torch.allclose(y[size // 2], cut[size // 2])
    peer, x = torch.nn.GRU(3, 3).double(), draws()(size, 3).detach()
    gates = torch.nn.functional.linear(x, peer.weight_ih_l0, peer.bias_ih_l0)
    torch.testing.assert_close(gru(gates, peer.weight_hh_l0, peer.bias_hh_l0, long), peer(x)[0])


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("timed", [True, False])
def test_pointwise_attention_of_one_shape_whatever_the_lengths(
    case: str, timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a captured step has it: rows in their order, all as wide as the longest; small blocks."""
    monkeypatch.setattr("sigma.ops.pointwise.BLOCK_BYTES", 3000)
    rows, size = rows_case(case)
    x = cases.pointwise_inputs(rows, size, timed=timed)
    kernels = pointwise_op.backends["triton"]
    assert isinstance(kernels, Kernels)
    detached = x._replace(**{k: v.detach() for k, v in cases.leaves_of(x).items()})
    grad = draws(9)(*x.q.shape).detach()
    y, saved = kernels.forward(detached, rows)
    grads = kernels.backward(grad, y, saved, detached, rows)
    cases.check(
        {"result": y, **dict(zip(cases.leaves_of(x), grads, strict=False))},
        cases.exact(x, rows, grad),
    )


def test_pointwise_attention_of_one_shape_asks_the_device_nothing() -> None:
    """Tensors without data could not answer."""
    q, times = torch.empty(20, 2, 4, device="meta"), torch.empty(20, device="meta").long()
    near, far = torch.empty(9, device="meta"), torch.empty(50, device="meta")
    x = Pointwise(q, q, q, near, far, times, times, 0.1)
    rows = Rows(torch.empty(4, device="meta").long(), 8)
    kernels, others = (pointwise_op.backends[name] for name in ("triton", "blocked"))
    assert isinstance(kernels, Kernels)
    assert isinstance(others, Kernels)
    y, saved = kernels.forward(x, rows)
    grads = kernels.backward(q, y, saved, x, rows)
    assert [g.shape for g in grads if g is not None] == [v.shape for v in x[:5] if v is not None]
    with pytest.raises(NotImplementedError, match="no data"):
        others.forward(x, rows)


def test_pointwise_attention_says_what_it_lacks() -> None:
    rows = rows_of(torch.tensor([3]))
    q = draws()(3, 1, 2)
    with pytest.raises(ValueError, match="up to 3 positions"):
        pointwise_attend(q, q, q, rows, torch.zeros(2), 1.0)
    with pytest.raises(ValueError, match="needs query_times"):
        pointwise_attend(q, q, q, rows, torch.zeros(3), 1.0, torch.zeros(5))
