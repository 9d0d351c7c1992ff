"""Softmax attention on packed rows: softmax(Q K^T / sqrt(d)) V within each row, heads apart.

Weights are computed again for the gradient, so no (L, L) matrix of a batch is kept. Dropout of the
weights is a function of a seed, query, key and head, so both ways draw the same.

Symbols: T places, M queries, B rows, H heads of d numbers.
"""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sigma.ops import native
from sigma.ops.blocked import blocks_of, pullback
from sigma.ops.inputs import Attend, Gradients
from sigma.ops.registry import Kernels, Operation
from sigma.ops.rows import Rows, typed
from sigma.ops.stream import need_whole_rows


def shapes(x: Attend) -> tuple[Tensor, Tensor]:
    """(M, H, d), and the logarithm of each query's sum of exponentials, (M, H)."""
    kind = torch.promote_types(x.q.dtype, torch.float32)
    return x.q.new_empty(x.q.shape), x.q.new_empty(x.q.shape[:2], dtype=kind)


def dropout_numbers(x: Attend) -> tuple[int, float, int]:
    """What C asks: steps of 2^-16 dropped, the factor of the rest, and 64 bits of seed."""
    steps = 2**16 if x.dropout >= 1 else min(round(x.dropout * 2**16), 2**16 - 1)
    return steps, 1 / (1 - steps / 2**16) if steps < 2**16 else 0.0, int(x.seed) & (2**64 - 1)


def cpu_forward(x: Attend, rows: Rows) -> tuple[Tensor, Tensor]:
    x = Attend(*native.solid(*x))
    out, lse = shapes(x)
    values = *x.q.shape, *x[:5], x.causal, *dropout_numbers(x), out, lse
    native.call("attend_forward", out.dtype, rows, *values)
    return out, lse


def cpu_backward(grad: Tensor, out: Tensor, lse: Tensor, x: Attend, rows: Rows) -> Gradients:
    grad, *inputs = native.solid(grad, *x)
    x = Attend(*inputs)
    grads = tuple(torch.empty_like(v) for v in x[:3])
    values = *x.q.shape, *x[:5], x.causal, *dropout_numbers(x), out, lse, len(x.k), grad, *grads
    native.call("attend_backward", out.dtype, rows, *values)
    return grads


def attention_of_block(
    visible: Tensor, dropout: float, generator: torch.Generator, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """(n, Q, H, d) from a bool visible (n, Q, L), q (n, Q, H, d), k and v (n, L, H, d)."""
    scores = torch.einsum("nqhd,nlhd->nhql", q * q.shape[-1] ** -0.5, k)
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    if dropout:
        draws = torch.rand(weights.shape, generator=generator, device=weights.device)
        weights = weights * (draws >= dropout) / (1 - dropout)
    return torch.einsum("nhql,nlhd->nqhd", weights, v)


Part = tuple[Tensor, Tensor, Tensor, Callable[[Tensor, Tensor, Tensor], Tensor]]


def blocks_of_queries(x: Attend, rows: Rows) -> Iterator[Part]:
    """Of rows of like length: index of queries (n, Q), which are real, index of keys (n, L), and
    what attention does with them."""
    generator = torch.Generator(x.q.device).manual_seed(int(x.seed))
    row_bytes = x.q.shape[1] * x.k.element_size()
    for block in blocks_of(rows.offsets, lambda n: n * n * row_bytes):
        first, stop = x.query_offsets[block.rows], x.query_offsets[block.rows + 1]
        most = int((stop - first).max())
        if not most:
            continue
        columns = torch.arange(most, device=first.device)
        real = columns < (stop - first)[:, None]
        index = torch.where(real, first[:, None] + columns, first[:, None])
        query = index.clamp(max=len(x.places) - 1)
        visible = block.real[:, None].expand(-1, most, -1)
        if x.causal:
            position = x.places[query] - rows.offsets[block.rows][:, None]
            columns = torch.arange(block.places.shape[1], device=first.device)
            visible = visible & (columns <= position[:, :, None])
        # A query that fills up sees something, so that nothing is divided by zero.
        visible = visible | ~real[:, :, None]
        attention = functools.partial(attention_of_block, visible, x.dropout, generator)
        yield query, real, block.places, attention


def blocked_forward(x: Attend, rows: Rows) -> tuple[Tensor, Tensor]:
    out, lse = (v.zero_() for v in shapes(x))
    for query, real, key, attention in blocks_of_queries(x, rows):
        out[query[real]] = attention(x.q[query], x.k[key], x.v[key])[real]
    return out, lse


def blocked_backward(grad: Tensor, out: Tensor, lse: Tensor, x: Attend, rows: Rows) -> Gradients:
    gq, gk, gv = (torch.zeros_like(v, memory_format=torch.contiguous_format) for v in x[:3])
    for query, real, key, attention in blocks_of_queries(x, rows):
        _, pull = pullback(attention, x.q[query], x.k[key], x.v[key])
        to_q, to_k, to_v = pull(grad[query] * real[:, :, None, None])
        gq[query[real]] = to_q[real]
        # Clamped cells repeat a row's last place; what they pass is zero.
        gk.index_add_(0, key.flatten(), to_k.flatten(0, 1))
        gv.index_add_(0, key.flatten(), to_v.flatten(0, 1))
    return gq, gk, gv


attend_op = Operation(
    "attend",
    Attend,
    3,
    shapes,
    {
        "cpu": Kernels(cpu_forward, cpu_backward),
        "triton": "sigma.ops.triton_attend",
        "blocked": Kernels(blocked_forward, blocked_backward),
    },
)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    places: Tensor | None = None,
    causal: bool = True,
    dropout: float = 0.0,
    query_offsets: Tensor | None = None,
) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V within each row, with dropout of the weights.

    Args:
        q: and what is not below, see ``inputs.Attend``.
        rows: of the packed batch.
        places: of the queries; None is every place.
        query_offsets: None tells them from ``places``, none of which is then beyond its row's end.

    Returns:
        (M, H, d); zeros behind the last row.
    """
    need_whole_rows(rows, "attend")
    if places is None:
        places, query_offsets = torch.arange(q.shape[0], device=q.device), rows.offsets
    elif query_offsets is None:
        query_offsets = torch.searchsorted(places, rows.offsets)
    if dropout:  # from PyTorch's generator, so that a resumed run draws what it would have drawn
        seed = torch.randint(2**62, (1,), device=q.device)
    else:
        seed = torch.zeros(1, dtype=torch.int64, device=q.device)
    result = q.dtype
    if q.device.type != "cuda":  # Triton reads half precision as it is
        q = typed(q, torch.promote_types(result, torch.float32))
    k, v = typed(k, q.dtype), typed(v, q.dtype)
    inputs = Attend(q, k, v, query_offsets, places, seed, causal, dropout)
    return typed(attend_op(inputs, rows, "auto"), result)
