"""Packed rows of many kinds, inputs of operations on them, results held to the reference."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sigma.ops import Rows, reference, rows_of
from sigma.ops.attend import attend_op
from sigma.ops.conv import conv_op
from sigma.ops.gru import gru_op
from sigma.ops.inputs import Attend, Conv, Gru, Pointwise, Scan
from sigma.ops.native import native_library
from sigma.ops.pointwise import pointwise_op
from sigma.ops.scan import scan_op

# Triton decides when it is imported whether its kernels are compiled or interpreted, and Lightning
# imports it. So the interpreter has a process of its own: a test of test_triton.py starts it.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
no_compiler = pytest.mark.skipif(native_library()[0] is None, reason="no C compiler here")

# Name -> lengths, and how many places there are behind the last row.
ROWS: dict[str, tuple[list[int], int]] = {
    "mixed": ([3, 1, 7, 0, 2, 5], 5),
    "rows of one": ([1, 1, 1, 1, 1], 1),
    "all equal": ([6, 6, 6], 0),
    "one row": ([11], 2),
    "empty first and last": ([0, 3, 0, 0, 2, 0], 2),
    "only a tail": ([0, 0], 3),
    "many": ([1, 0, 7, 3, 1, 16, 17, 2, 0, 5] * 5 + [33, 70, 0, 9], 5),
}


SLOW = ("many", "rows of one", "one row")  # where kernels are interpreted; others have the like


class Where(NamedTuple):
    """A backend, the type it computes in, and the device."""

    backend: str
    kind: torch.dtype
    device: str


CPU = [
    pytest.param(Where("cpu", torch.float64, "cpu"), id="cpu-double", marks=no_compiler),
    pytest.param(Where("cpu", torch.float32, "cpu"), id="cpu-float", marks=no_compiler),
    pytest.param(Where("blocked", torch.float64, "cpu"), id="blocked"),
]
CUDA = pytest.param(
    Where("triton", torch.float32, "cuda"), id="cuda", marks=[pytest.mark.gpu, no_cuda]
)
TRITON = [pytest.param(Where("triton", torch.float32, "cpu"), id="cpu")] if INTERPRETED else [CUDA]
everywhere = pytest.mark.parametrize("where", TRITON if INTERPRETED else [*CPU, CUDA])
by_kernels = pytest.mark.parametrize("where", TRITON if INTERPRETED else [*CPU[:2], CUDA])
by_triton = pytest.mark.parametrize("where", TRITON)
on_all_rows = pytest.mark.parametrize(
    "case", [name for name in ROWS if not (INTERPRETED and name in SLOW)]
)


def sizes(names: Any, *values: Any) -> pytest.MarkDecorator:
    """A test for each of the values; interpreted kernels take the first, as they are slow."""
    return pytest.mark.parametrize(names, values[:1] if INTERPRETED else values)


def rows_case(name: str) -> tuple[Rows, int]:
    """Rows, and T."""
    lengths, tail = ROWS[name]
    return rows_of(torch.tensor(lengths)), sum(lengths) + tail


def draws(seed: int = 0, dtype: torch.dtype = torch.float64) -> Callable[..., Tensor]:
    """A function shape -> values that take a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return x.requires_grad_()

    return draw


def weighted_gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Gradients of a fixed weighting of y; zeros where it does not depend on a leaf."""
    weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y).to(y)
    return list(torch.autograd.grad(y, leaves, weight, retain_graph=True, materialize_grads=True))


def same(
    y: Tensor, want: Tensor, leaves: list[Tensor], *others: Tensor, rtol: float = 1e-9
) -> None:
    """Results and gradients; those of ``want`` by ``others`` where it has leaves of its own."""
    torch.testing.assert_close(y, want, rtol=rtol, atol=rtol)
    pairs = weighted_gradients(y, leaves), weighted_gradients(want, list(others) or leaves)
    torch.testing.assert_close(*pairs, rtol=10 * rtol, atol=rtol)


def scan_inputs(size: int, d: int = 5, n: int = 3, gated: bool = True) -> Scan:
    draw = draws(1)
    a = (-4 * draw(d, n).detach().abs()).requires_grad_()
    z = draw(size, d) if gated else None
    return Scan(draw(size, d), draw(size, d), a, draw(size, n), draw(size, n), draw(d), z, draw(d))


def conv_inputs(size: int, d: int = 5, k: int = 4, silu: bool = True) -> Conv:
    draw = draws(2)
    return Conv(draw(size, d), draw(d, k), draw(d), silu)


def gru_inputs(size: int, units: int = 4) -> Gru:
    draw = draws(3)
    weight = (draw(3 * units, units).detach() / units**0.5).requires_grad_()
    return Gru(draw(size, 3 * units), weight, draw(3 * units))


def attend_inputs(
    rows: Rows,
    size: int,
    heads: int = 2,
    d: int = 8,
    which: str = "all",
    causal: bool = True,
    dropout: float = 0.0,
) -> Attend:
    """Queries of all places, of each row's last, or of some; also of two behind the last row."""
    end = int(rows.offsets[-1])
    behind = torch.tensor([end] * 2)
    places = {
        "all": torch.arange(size),
        "last": torch.cat([rows.offsets[1:][rows.offsets.diff() > 0] - 1, behind]),
        "some": torch.cat([torch.arange(0, end, 3), behind]),
    }[which]
    draw, seed = draws(4), torch.tensor([2**40 + 7])
    q, k, v = draw(len(places), heads, d), draw(size, heads, d), draw(size, heads, d)
    queries = torch.searchsorted(places, rows.offsets)
    return Attend(q, k, v, queries, places, seed, causal, dropout)


def pointwise_inputs(
    rows: Rows, size: int, heads: int = 2, d: int = 4, timed: bool = True
) -> Pointwise:
    """Times from none to years apart, some after the queries'."""
    draw, generator = draws(5), torch.Generator().manual_seed(5)
    q, k, v = draw(size, heads, d), draw(size, heads, d), draw(size, heads, d)
    near = draw(rows.longest + 1)
    if not timed:
        return Pointwise(q, k, v, near, None, None, None, 0.3)
    u, w = (torch.rand(2, size, generator=generator).double() * 19).exp().long()
    return Pointwise(q, k, v, near, draw(50), u, w, 0.3)


# Kind of inputs -> the operation, its reference, and the inputs that have a value at each place.
OPERATIONS: dict[type, tuple[Callable[..., Tensor], Callable[..., Tensor], set[str]]] = {
    Scan: (scan_op, reference.selective_scan, {"u", "dt", "B", "C", "z"}),
    Conv: (conv_op, reference.causal_conv, {"x"}),
    Gru: (gru_op, reference.gru, {"gates"}),
    Attend: (attend_op, reference.attend, {"q", "k", "v"}),
    Pointwise: (pointwise_op, reference.pointwise_attend, {"q", "k", "v"}),
}


def leaves_of(x: Any) -> dict[str, Tensor]:
    return {k: v for k, v in x._asdict().items() if isinstance(v, Tensor) and v.requires_grad}


def run(
    x: Any,
    rows: Rows,
    where: Where,
    grad: Tensor | None = None,
    layout: Callable[[Tensor], Tensor] = lambda v: v,
) -> dict[str, Tensor]:
    """Result and gradients; NaN stands behind the last row (PyTorch alone may read it times 0).

    Inputs of float64 become what the backend computes in; ``layout`` puts those that have a value
    at each place into memory of other strides. A ``grad`` of None is 1.
    """
    operation, _, placed = OPERATIONS[type(x)]
    end = int(rows.offsets[-1])
    ends = {"result": end} | dict.fromkeys(placed, end)
    if isinstance(x, Attend):
        ends["q"] = ends["result"] = int(x.query_offsets[-1])

    def put(name: str, v: Tensor) -> Tensor:
        kind = where.kind if v.dtype == torch.float64 else v.dtype
        v = v.detach().to(where.device, kind, copy=True)
        if name in ends:
            v[ends[name] :] = 1e3 if where.backend == "blocked" else float("nan")
            v = layout(v)
        return v

    leaves = {k: put(k, v).requires_grad_() for k, v in leaves_of(x).items()}
    tensors = {k: v.to(where.device) for k, v in x._asdict().items() if isinstance(v, Tensor)}
    rows = Rows(rows.offsets.to(where.device), rows.longest)
    y = operation(x._replace(**tensors | leaves), rows, where.backend)
    grad = put("result", torch.ones_like(y) if grad is None else grad).to(y.dtype)
    grads = torch.autograd.grad(y, list(leaves.values()), grad)
    results = {"result": y.detach()} | dict(zip(leaves, grads, strict=True))
    for name in ends.keys() & results.keys():
        assert not results[name][ends[name] :].any(), name
    return results


def exact(x: Any, rows: Rows, grad: Tensor | None = None) -> dict[str, Tensor]:
    """Result and gradients of the reference in float64."""
    leaves = {k: v.detach().double().requires_grad_() for k, v in leaves_of(x).items()}
    y = OPERATIONS[type(x)][1](x._replace(**leaves), rows.offsets)
    return with_gradients(y, leaves, grad)


def with_gradients(
    y: Tensor, leaves: dict[str, Tensor], grad: Tensor | None = None
) -> dict[str, Tensor]:
    grads = [torch.zeros_like(v) for v in leaves.values()]
    if y.requires_grad:  # else no row has a place
        grad = torch.ones_like(y) if grad is None else grad.detach().double()
        grads = list(torch.autograd.grad(y, list(leaves.values()), grad, materialize_grads=True))
    return {"result": y.detach()} | dict(zip(leaves, grads, strict=True))


def check(results: dict[str, Tensor], want: dict[str, Tensor], limit: float = 0.0) -> None:
    """Every tensor as a whole to ``limit`` of its largest entry.

    A GPU's exp2 and division are approximate by two units in the last place.
    """
    assert results.keys() == want.keys()
    for name, value in want.items():
        x = results[name]
        assert x.shape == value.shape
        if value.numel():
            bound = limit or (1e-10 if x.dtype == torch.float64 else 2e-6)
            bound *= (5 if x.is_cuda else 1) * max(float(value.abs().max()), 1.0)
            error = float((x.cpu().double() - value).abs().max())
            assert error <= bound, (name, error, bound)


def held_to_the_reference(x: Any, rows: Rows, where: Where, limit: float = 0.0) -> None:
    """With a gradient of the result that is 0 nowhere."""
    size = len(x.q) if isinstance(x, Attend) else len(x[0])
    width = x.weight.shape[1:] if isinstance(x, Gru) else x[0].shape[1:]
    grad = draws(9)(size, *width).detach()
    check(run(x, rows, where, grad), exact(x, rows, grad), limit)
