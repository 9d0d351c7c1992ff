"""The Triton GRU and attention are held to the reference in float64: on CUDA, and interpreted.

As in test_triton_rows.py the interpreter has a process of its own: the last test runs this file
again.
"""

import os
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.ops.reference import attend, gru

pytest.importorskip("triton", reason="needs triton")
from triton import language as tl

from sigma.ops import triton_attend, triton_gru

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu" if INTERPRETED else pytest.param("cuda", marks=[pytest.mark.gpu, no_cuda])]
on_each_device = pytest.mark.parametrize("device", DEVICES)
TAIL = 5  # places behind the last row
MIXED, EQUAL, ONE, MANY, LONG = [1, 5, 0, 9, 3], [4, 4, 4], [7], [2, 1, 3] * 6, [70, 0, 2]
on_each_layout = pytest.mark.parametrize(
    "lengths", [MIXED, EQUAL, ONE, MANY, LONG], ids=["mixed", "equal", "one", "many", "long"]
)


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def check(names: str, got: tuple[Tensor, ...], want: tuple[Tensor, ...], limit: float) -> None:
    """Every tensor as a whole to ``limit`` of its largest entry; a GPU's exp2 is approximate."""
    for name, x, exact in zip(names.split(), got, want, strict=True):
        assert x.shape == exact.shape
        error = (x.cpu().double() - exact.cpu()).abs().max()
        bound = limit * (5 if x.is_cuda else 1) * max(1.0, float(exact.abs().max()))
        assert error <= bound, (name, error, bound)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(y: Tensor, weighting: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    weighting = weighting.to(device=y.device, dtype=y.dtype)
    return (y.detach(), *torch.autograd.grad(y, leaves, weighting))


class Gru(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
        states, saved = triton_gru.forward(gates, weight, bias, offsets, len(gates))
        ctx.save_for_backward(states, saved, weight, offsets)
        return states

    @staticmethod
    def backward(ctx: Any, gstates: Tensor) -> tuple[Tensor | None, ...]:
        states, saved, weight, offsets = ctx.saved_tensors
        gstates = gstates.contiguous()
        ggates, ghidden = triton_gru.backward(gstates, saved, states, weight, offsets, len(states))
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        before[offsets[:-1].clamp(max=len(states) - 1)] = 0
        products = torch.cat([ggates[:, : 2 * weight.shape[1]], ghidden], 1)
        return ggates, products.t() @ before, products.sum(0), None


def gru_inputs(lengths: list[int], G: int) -> list[Tensor]:
    """Gates, weight, bias, and a gradient of the states."""
    T = sum(lengths) + TAIL
    shapes = (T, 3 * G), (3 * G, G), (3 * G,), (T, G)
    gates, weight, bias, gstates = (random(*shape, seed=i) for i, shape in enumerate(shapes))
    return [gates, weight / G**0.5, bias, gstates]


def gru_run(
    inputs: list[Tensor], lengths: list[int], device: str, exact: bool = False
) -> tuple[Tensor, ...]:
    x = [v.detach().to(device, torch.float64 if exact else torch.float32) for v in inputs]
    gates, weight, bias = (v.requires_grad_() for v in x[:3])
    y = (gru if exact else Gru.apply)(gates, weight, bias, offsets_of(lengths).to(device))
    return with_gradients(y, x[3], gates, weight, bias)


def gru_check(lengths: list[int], G: int, device: str) -> None:
    inputs = gru_inputs(lengths, G)
    got = gru_run(inputs, lengths, device)
    check("h gates weight bias", got, gru_run(inputs, lengths, device, exact=True), 2e-6)
    assert not got[0][-TAIL:].any()
    assert not got[1][-TAIL:].any()


@on_each_device
@on_each_layout
def test_gru_equals_reference(device: str, lengths: list[int]) -> None:
    gru_check(lengths, 20 if max(lengths) < 70 else 8, device)


@on_each_device
def test_gru_takes_its_product_in_chunks(device: str) -> None:
    assert triton_gru.tile_sizes(72)["BLOCK_K"] == 32
    gru_check([3, 1], 72, device)


@on_each_device
def test_gru_sorts_many_rows(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [2, 0, 5, 1] * 5
    assert triton_gru.row_order(offsets_of(lengths)) is None
    monkeypatch.setattr(triton_gru, "UNSORTED", 1)
    assert triton_gru.row_order(offsets_of(lengths)) is not None
    gru_check(lengths, 16, device)


@on_each_device
def test_gru_leaves_the_tail_alone_and_repeats(device: str) -> None:
    lengths = MIXED
    inputs = gru_inputs(lengths, 16)
    clean = gru_run(inputs, lengths, device)
    assert all(map(torch.equal, clean, gru_run(inputs, lengths, device)))
    for x in (inputs[0], inputs[3]):
        x[-TAIL:] = float("nan")
    assert all(map(torch.equal, clean, gru_run(inputs, lengths, device)))


class Queries(NamedTuple):
    """What attention is asked for: rows of these lengths, and which of their places."""

    lengths: list[int]
    places: Tensor
    query_offsets: Tensor
    causal: bool = True
    dropout: float = 0.0
    seed: int = 2**40 + 7

    def arguments(self, device: str) -> tuple[Any, ...]:
        tensors = (offsets_of(self.lengths), self.query_offsets, self.places)
        settings = max(self.lengths), self.causal, self.dropout
        return (*(x.to(device) for x in tensors), *settings, torch.tensor([self.seed]).to(device))


def queries(lengths: list[int], which: str = "all", **rest: Any) -> Queries:
    offsets = offsets_of(lengths)
    end = int(offsets[-1])
    if which == "all":
        places = torch.arange(end + TAIL)
    elif which == "last":
        places = torch.cat([offsets[1:][offsets.diff() > 0] - 1, torch.tensor([end])])
    else:
        places = torch.cat([torch.arange(end)[random(end, seed=5) > 0], torch.tensor([end] * 2)])
    return Queries(lengths, places, torch.searchsorted(places, offsets), **rest)


class Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, request: Queries) -> Tensor:
        ctx.arguments = request.arguments(q.device.type)
        out, lse = triton_attend.forward(q, k, v, *ctx.arguments)
        assert lse.dtype == torch.float32
        assert not lse[int(request.query_offsets[-1]) :].any()
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, gout: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        return (*triton_attend.backward(gout.contiguous(), *saved, *ctx.arguments), None)


def attend_inputs(request: Queries, H: int, d: int) -> list[Tensor]:
    """q, k, v, and a gradient of the output."""
    M, T = len(request.places), sum(request.lengths) + TAIL
    return [random(n, H, d, seed=i) for i, n in enumerate((M, T, T, M))]


def attend_run(inputs: list[Tensor], request: Queries, device: str) -> tuple[Tensor, ...]:
    leaves = [v.detach().to(device).requires_grad_() for v in inputs[:3]]
    return with_gradients(Attend.apply(*leaves, request), inputs[3], *leaves)


def attend_exact(inputs: list[Tensor], request: Queries) -> tuple[Tensor, ...]:
    q, k, v = (x.double().requires_grad_() for x in inputs[:3])
    y = attend(q, k, v, offsets_of(request.lengths), request.places, request.causal)
    return with_gradients(y, inputs[3], q, k, v)


def attend_check(request: Queries, inputs: list[Tensor], device: str, limit: float = 2e-6) -> None:
    got = attend_run(inputs, request, device)
    check("out q k v", got, attend_exact(inputs, request), limit)
    assert {x.dtype for x in got} == {inputs[0].dtype}
    for x, end in zip(
        got, [request.query_offsets[-1]] * 2 + [sum(request.lengths)] * 2, strict=True
    ):
        assert len(x) > end
        assert not x[end:].any()


@on_each_device
@on_each_layout
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("which", ["all", "last", "some"])
def test_attend_equals_reference(device: str, which: str, causal: bool, lengths: list[int]) -> None:
    request = queries(lengths, which, causal=causal)
    attend_check(request, attend_inputs(request, 2, 8 if which == "all" else 32), device)


@on_each_device
def test_attend_of_queries_beyond_a_rows_end(device: str) -> None:
    """As those of padding columns are, in a model that reads padding: they see the whole row."""
    lengths, columns = [3, 20, 1], 20
    offsets = offsets_of(lengths)
    places = (offsets[:-1, None] + torch.arange(columns)).flatten()
    request = Queries(lengths, places, torch.arange(4) * columns)
    inputs = attend_inputs(request, 2, 8)
    q, k, v = (x.double().requires_grad_() for x in inputs[:3])
    wide, deep = (
        torch.stack(
            [
                F.pad(row, (0, 0, 0, 0, 0, columns - len(row)))
                for row in x.split([*lengths, TAIL])[:3]
            ]
        )
        for x in (k, v)
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", q.view(3, columns, 2, 8), wide) / 8**0.5
    key, query = torch.arange(columns), torch.arange(columns)[:, None]
    visible = (key <= query) & (key < torch.tensor(lengths)[:, None, None])
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    exact = torch.einsum("bhqk,bkhd->bqhd", weights, deep).flatten(0, 1)
    want = with_gradients(exact, inputs[3], q, k, v)
    check("out q k v", attend_run(inputs, request, device), want, 2e-6)


@on_each_device
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_attend_leaves_the_tail_alone_and_repeats(device: str, dropout: float) -> None:
    request = queries(MIXED, dropout=dropout)
    inputs = attend_inputs(request, 2, 8)
    clean = attend_run(inputs, request, device)
    assert all(map(torch.equal, clean, attend_run(inputs, request, device)))
    for x in inputs:
        x[-TAIL:] = float("nan")
    assert all(map(torch.equal, clean, attend_run(inputs, request, device)))


@on_each_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attend_half_precision(
    device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:  # it multiplies bfloat16 as the integers that it stores them in
        from triton.runtime.interpreter import InterpreterBuilder

        product = InterpreterBuilder.create_dot

        def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
            if a.dtype.scalar == tl.bfloat16:
                a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
            return product(self, a, b, *rest)

        monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    request = queries([3, 20])
    inputs = [x.to(dtype) for x in attend_inputs(request, 2, 8)]
    attend_check(request, inputs, device, 8 * torch.finfo(dtype).eps)


def weights(inputs: list[Tensor], request: Queries, device: str) -> Tensor:
    """The weights after dropout, (M, H, d), read out by one-hot values; no row is longer than d."""
    q, k = (x.to(device) for x in inputs[:2])
    offsets, place = offsets_of(request.lengths), torch.arange(len(k))
    position = place - offsets[torch.searchsorted(offsets, place, right=True) - 1]
    v = torch.eye(k.shape[2], device=device)[position, None].expand_as(k).contiguous()
    return triton_attend.forward(q, k, v, *request.arguments(device))[0].cpu()


@on_each_device
@pytest.mark.parametrize(("which", "causal"), [("all", True), ("some", False)])
def test_dropout(device: str, which: str, causal: bool) -> None:
    """Its share, its scale, that the seed decides, and gradients of the very weights dropped."""
    lengths, p, d = [70, 0, 13], 0.3, 70
    request = queries(lengths, which, causal=causal, dropout=p)
    inputs = attend_inputs(request, 2, d)
    plain = weights(inputs, request._replace(dropout=0.0), device)
    result = weights(inputs, request, device)
    reach, mask = plain > 0, result > 0
    assert not (mask & ~reach).any()
    assert abs(1 - mask.sum() / reach.sum() - p) < 0.03
    # The two heads see the same keys, and agree as two coins do.
    agreement = (mask[:, 0] == mask[:, 1])[reach[:, 0]].double().mean()
    assert abs(agreement - (p**2 + (1 - p) ** 2)) < 0.04
    torch.testing.assert_close(result, mask * plain / (1 - p), rtol=1e-5, atol=1e-7)
    assert torch.equal(result, weights(inputs, request, device))
    for seed in (request.seed + 1, request.seed - 2**40):
        assert not torch.equal(result, weights(inputs, request._replace(seed=seed), device))

    leaves = [v.double().requires_grad_() for v in inputs[:3]]
    q, k, v = leaves
    ends, parts = offsets_of(lengths).tolist(), []
    for b, n in enumerate(lengths):
        those = slice(*request.query_offsets[b : b + 2].tolist())
        row = slice(ends[b], ends[b + 1])
        scores = torch.einsum("mhd,nhd->mhn", q[those], k[row]) / d**0.5
        scores = scores.masked_fill(~reach[those, :, :n], -torch.inf)
        share = scores.softmax(-1) * mask[those, :, :n] / (1 - p)
        parts.append(torch.einsum("mhn,nhd->mhd", share, v[row]))
    out = torch.cat([*parts, torch.zeros_like(q[request.query_offsets[-1] :])])
    exact = with_gradients(out, inputs[3], *leaves)
    check("out q k v", attend_run(inputs, request, device), exact, 2e-6)


@on_each_device
def test_no_rows(device: str) -> None:
    request = Queries([0], torch.arange(TAIL), torch.tensor([0, 0]))
    assert not any(x.any() for x in attend_run(attend_inputs(request, 2, 8), request, device))
    assert not any(x.any() for x in gru_run(gru_inputs([0], 16), [0], device))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
@no_cuda
@pytest.mark.parametrize("size", [64, 128, 200])
def test_full_size_on_cuda(size: int) -> None:
    lengths = [1 + 37 * i % 50 for i in range(100)]
    gru_check(lengths, size, "cuda")
    for request in (queries(lengths[:20]), queries([150, 3, 90])):
        attend_check(request, attend_inputs(request, 2, size // 2), "cuda", 5e-6)


@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_everything_in_the_interpreter() -> None:
    unwanted = ("PYTEST_", "COV_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
