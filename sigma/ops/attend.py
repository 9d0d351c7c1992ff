"""Softmax attention on packed rows, registered with PyTorch.

Weights are computed again for the gradient, so no (L, L) matrix of a batch is kept. Dropout of the
weights is a function of a seed, query, key and head, so both ways draw the same.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from sigma.ops import native, plain
from sigma.ops.dispatch import kernel_backend
from sigma.ops.registry import register
from sigma.ops.rows import Rows, typed


class _Blocks:
    """Queries and keys of rows of like length, for PyTorch alone."""

    def __init__(
        self, q: Tensor, k: Tensor, offsets: Tensor, query_offsets: Tensor, places: Tensor,
        causal: bool, dropout: float, seed: Tensor,
    ) -> None:  # fmt: skip
        self.offsets = offsets
        self.query_offsets = query_offsets
        self.places = places
        self.causal = causal
        self.dropout = dropout
        self.generator = torch.Generator(q.device).manual_seed(int(seed))
        self.row_bytes = q.shape[1] * k.element_size()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Queries' index (n, Q), which are real, keys' index (n, L), and what is visible."""
        for block in plain.blocks_of(self.offsets, lambda n: n * n * self.row_bytes):
            first, stop = self.query_offsets[block.rows], self.query_offsets[block.rows + 1]
            most = int((stop - first).max())
            if not most:
                continue
            columns = torch.arange(most, device=first.device)
            asked = columns < (stop - first)[:, None]
            query = torch.where(asked, first[:, None] + columns, first[:, None]).clamp(
                max=len(self.places) - 1
            )
            visible = block.real[:, None].expand(-1, most, -1)
            if self.causal:
                position = self.places[query] - self.offsets[block.rows][:, None]
                columns = torch.arange(block.places.shape[1], device=first.device)
                visible = visible & (columns <= position[:, :, None])
            # A query that fills up sees something, so that nothing is divided by zero.
            yield query, asked, block.places, visible | ~asked[:, :, None]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        return plain.attention(q, k, v, visible, self.dropout, self.generator)


def attend_rows(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, query_offsets: Tensor, places: Tensor,
    longest: int, causal: bool, dropout: float, seed: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(M, H, d), and the log of each query's sum of weights, (M, H), for the gradient.

    ``blocked`` computes the latter again and returns zeros.
    """
    backend = kernel_backend("auto", q)
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (x.contiguous() for x in (q, k, v))
        if backend == "triton":
            from sigma.ops import triton_attend

            return triton_attend.forward(
                q, k, v, offsets, query_offsets, places, longest, causal, dropout, seed
            )
        if backend == "cpu":
            return native.attend_forward(
                q, k, v, offsets, query_offsets, places, causal, dropout, int(seed)
            )
        blocks = _Blocks(q, k, offsets, query_offsets, places, causal, dropout, seed)
        out = torch.zeros_like(q)
        for query, asked, key, visible in blocks:
            out[query[asked]] = blocks.attention(q[query], k[key], v[key], visible)[asked]
        return out, q.new_zeros(q.shape[:2])


def _shape(q, k, v, offsets, query_offsets, places, longest, causal, dropout, seed):  # type: ignore[no-untyped-def]
    kind = q.dtype if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=kind)


def attend_rows_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor,
    query_offsets: Tensor, places: Tensor, longest: int, causal: bool, dropout: float, seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v."""
    backend = kernel_backend("auto", q)
    with torch.autocast(q.device.type, enabled=False):
        grad, q, k, v = (x.contiguous() for x in (grad, q, k, v))
        if backend == "triton":
            from sigma.ops import triton_attend

            return triton_attend.backward(
                grad, q, k, v, out, lse, offsets, query_offsets, places, longest, causal, dropout,
                seed,
            )  # fmt: skip
        if backend == "cpu":
            return native.attend_backward(
                grad, q, k, v, out, lse, offsets, query_offsets, places, causal, dropout, int(seed)
            )
        blocks = _Blocks(q, k, offsets, query_offsets, places, causal, dropout, seed)
        gq, gk, gv = (torch.zeros_like(x) for x in (q, k, v))
        for query, asked, key, visible in blocks:
            _, pull = plain.pullback(
                functools.partial(blocks.attention, visible=visible), q[query], k[key], v[key]
            )
            grads = pull(grad[query] * asked[:, :, None, None])
            gq[query[asked]] = grads[0][asked]
            # Clamped cells repeat a row's last place; what they pass is zero.
            gk.index_add_(0, key.flatten(), grads[1].flatten(0, 1))
            gv.index_add_(0, key.flatten(), grads[2].flatten(0, 1))
        return gq, gk, gv


def _backward_shapes(grad, q, k, v, *rest):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


attend_backward_op = register(attend_rows_backward, _backward_shapes)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    q, k, v, offsets, query_offsets, places, ctx.longest, ctx.causal, ctx.dropout, seed = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, offsets, query_offsets, places, seed)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    *tensors, seed = ctx.saved_tensors
    grads = attend_backward_op(grad, *tensors, ctx.longest, ctx.causal, ctx.dropout, seed)
    return (*grads, *[None] * 7)


attend_op = register(attend_rows, _shape, _save, _backward)


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
        q: (M, H, d), of the queries at ``places``.
        k: (T, H, d).
        v: (T, H, d).
        rows: of the packed batch.
        places: (M,) ascending; None is every place.
        causal: a query sees its own position and those before it, otherwise its whole row.
        dropout: probability, of the weights.
        query_offsets: (B + 1,) row b's queries are query_offsets[b] … query_offsets[b + 1] - 1, at
            most ``rows.longest`` of them; a query's position, ``places`` less its row's offset, may
            then lie beyond the row's end. None tells them from ``places``.

    Returns:
        (M, H, d); zeros behind the last row.
    """
    offsets = rows.offsets
    if places is None:
        places, query_offsets = torch.arange(q.shape[0], device=q.device), offsets
    elif query_offsets is None:
        query_offsets = torch.searchsorted(places, offsets)
    if dropout:  # from PyTorch's generator, so that a resumed run draws what it would have drawn
        seed = torch.randint(2**62, (1,), device=q.device)
    else:
        seed = torch.zeros(1, dtype=torch.int64, device=q.device)
    result = q.dtype
    if q.device.type != "cuda":  # Triton reads half precision as it is
        q = typed(q, torch.promote_types(result, torch.float32))
    k, v = typed(k, q.dtype), typed(v, q.dtype)
    out, _ = attend_op(
        q, k, v, offsets, query_offsets, places, rows.longest, causal, dropout, seed
    )  # fmt: skip
    return typed(out, result)
