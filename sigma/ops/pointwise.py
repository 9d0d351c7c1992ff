"""HSTU's attention on packed rows, causal, heads apart (Zhai et al., ICML 2024, eq. 2).

    y_t = scale Σ_{s <= t} silu(q_t · k_s + a_{t-s} + b_g) v_s                                  (1)
    g   = min(floor(log(max(|u_t - w_s|, 1)) / 0.301), G - 1)                                   (2)

No weight depends on another, so nothing is divided by a sum. By PyTorch alone: rows stand side by
side in blocks, and weights are computed again for the gradient, so that only one block's exist at a
time. All moves are gathers.

Symbols: T places, B rows, H heads of d numbers, a the bias of a distance, b that of a time, of
which there are G, u and w the times of queries and keys; n rows of a block, L columns.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.ops.blocked import BLOCK_BYTES, block_rows
from sigma.ops.inputs import Gradients, Pointwise
from sigma.ops.moves import select
from sigma.ops.registry import Kernels, Operation
from sigma.ops.rows import Rows, typed
from sigma.ops.stream import need_whole_rows

BUCKET = 0.301  # of the logarithm: a bucket spans a factor of 1.35, whatever the unit of time

Block = tuple[int, int, int]  # first row, one past the last, columns
Layout = Callable[[Rows, Callable[[int], int]], tuple[Tensor, list[Block]]]


def by_length(rows: Rows, row_bytes: Callable[[int], int]) -> tuple[Tensor, list[Block]]:
    """Order of the rows (B,) and blocks of like length; it reads the lengths."""
    lengths, order = rows.offsets.diff().sort(stable=True)
    ascending = lengths.tolist()
    blocks = block_rows(ascending, row_bytes)
    return order, [(first, last, max(ascending[last - 1], 1)) for first, last in blocks]


def by_longest(rows: Rows, row_bytes: Callable[[int], int]) -> tuple[Tensor, list[Block]]:
    """The same with all rows as wide as the longest: no shape depends on the lengths."""
    number, width = len(rows.offsets) - 1, max(rows.longest, 1)
    step = max(1, BLOCK_BYTES // row_bytes(width))
    blocks = [(i, min(i + step, number), width) for i in range(0, number, step)]
    return torch.arange(number, device=rows.offsets.device), blocks


class Part(NamedTuple):
    """A block's values, zeros where no place is."""

    place: Tensor  # (n, L), T where there is none
    q: Tensor  # (n, H, L, d), as are k and v
    k: Tensor
    v: Tensor
    scores: Tensor  # (n, H, L, L), what silu is of
    bucket: Tensor | None  # (n, L, L)


def buckets(gaps: Tensor, number: int) -> Tensor:
    """Equation 2 of differences u - w."""
    return gaps.abs().clamp(min=1).float().log().div(BUCKET).long().clamp(max=number - 1)


def distances(width: int, device: torch.device) -> Tensor:
    """t - s of each query and key, (L, L); 0 of keys that are not seen."""
    at = torch.arange(width, device=device)
    return (at[:, None] - at).clamp(min=0)


def sums(values: Tensor, bucket: Tensor, number: int) -> Tensor:
    """The sum of each bucket's values, (G,); the same bits each time."""
    if values.device.type == "cpu":
        return values.new_zeros(number).index_add_(0, bucket, values)
    # An index would be checked, for which the host waits; this one is sorted.
    table = torch.ops.aten.embedding_dense_backward(values[:, None], bucket, number, -1, False)
    return table[:, 0]


def cells(x: Tensor, place: Tensor) -> Tensor:
    """(T, …) -> (n, L, …)."""
    return select(x, place.flatten(), False).view(*place.shape, *x.shape[1:])


def heads(x: Tensor, place: Tensor) -> Tensor:
    """(T, H, d) -> (n, H, L, d)."""
    return cells(x, place).transpose(1, 2)


class Blocks:
    """The inputs, block by block, and the way back to packed rows."""

    def __init__(self, x: Pointwise, rows: Rows, layout: Layout) -> None:
        self.x, self.rows, self.size = x, rows, x.q.shape[0]
        # Of the scores, and of buckets, which are int64.
        bytes_of_cell = x.q.shape[1] * x.q.element_size() + (0 if x.time_bias is None else 8)
        self.order, self.blocks = layout(rows, lambda n: n * n * bytes_of_cell)

    def __iter__(self) -> Iterator[Part]:
        x, offsets = self.x, self.rows.offsets
        for first, last, width in self.blocks:
            row = self.order[first:last]
            start = offsets[row, None]
            column = torch.arange(width, device=offsets.device)
            place = torch.where(column < offsets[row + 1, None] - start, start + column, self.size)
            q, k, v = (heads(part, place) for part in (x.q, x.k, x.v))
            scores = q @ k.mT
            scores += x.distance_bias[distances(width, offsets.device)]
            bucket = None
            if x.time_bias is not None:
                assert x.query_times is not None
                assert x.key_times is not None
                query, key = cells(x.query_times, place), cells(x.key_times, place)
                bucket = buckets(query[:, :, None] - key[:, None], len(x.time_bias))
                scores += x.time_bias[bucket][:, None]
            yield Part(place, q, k, v, scores, bucket)

    def packed(self, parts: list[Tensor]) -> Tensor:
        """Every block's (n, H, L, d) -> (T, H, d), zeros behind the last row."""
        offsets, firsts, total = self.rows.offsets, [], 0
        for first, last, width in self.blocks:
            number = torch.arange(last - first, device=offsets.device)
            firsts.append(total + width * number)
            total += width * (last - first)
        at = torch.arange(self.size, device=offsets.device)
        row = self.rows.row_of(at).clamp(max=len(offsets) - 2)
        cell = torch.cat(firsts)[self.order.argsort()][row] + at - offsets[row]
        flat = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])
        return select(flat, torch.where(at < offsets[-1], cell, total), False)


def forward(x: Pointwise, rows: Rows, layout: Layout) -> tuple[Tensor, Tensor]:
    blocks = Blocks(x, rows, layout)
    parts = [F.silu(part.scores).tril_().mul_(x.scale) @ part.v for part in blocks]  # eq. 1
    return blocks.packed(parts), x.q.new_empty(0)


def backward(
    grad: Tensor, result: Tensor, saved: Tensor, x: Pointwise, rows: Rows, layout: Layout
) -> Gradients:
    blocks = Blocks(x, rows, layout)
    of_q, of_k, of_v = [], [], []
    of_distance = torch.zeros_like(x.distance_bias)
    of_time = None if x.time_bias is None else torch.zeros_like(x.time_bias)
    for part in blocks:
        above, width = heads(grad, part.place), part.scores.shape[-1]
        weights = F.silu(part.scores).tril_().mul_(x.scale)
        of_v.append(weights.mT @ above)
        slopes = torch.ops.aten.silu_backward(
            (above @ part.v.mT).tril_().mul_(x.scale), part.scores
        )
        of_q.append(slopes @ part.k)
        of_k.append(slopes.mT @ part.q)
        slopes = slopes.sum(1)  # (n, L, L): biases are the same for all heads
        # Keys in the order of their distance: those of distance 0 in the first column, and so on.
        nearest = slopes.sum(0).gather(1, distances(width, grad.device)).tril_()
        of_distance[:width] += nearest.sum(0)
        if of_time is not None:
            assert part.bucket is not None
            of_time += sums(slopes.flatten(), part.bucket.flatten(), len(of_time))
    return *(blocks.packed(parts) for parts in (of_q, of_k, of_v)), of_distance, of_time


def kernels(layout: Layout) -> Kernels:
    return Kernels(
        functools.partial(forward, layout=layout), functools.partial(backward, layout=layout)
    )


pointwise_op = Operation(
    "pointwise",
    Pointwise,
    5,
    lambda x: (torch.empty_like(x.q), x.q.new_empty(0)),
    {
        "cpu": kernels(by_length),
        "blocked": kernels(by_length),
        "triton": kernels(by_longest),  # where a step is captured
    },
)


def pointwise_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    distance_bias: Tensor,
    scale: float,
    time_bias: Tensor | None = None,
    query_times: Tensor | None = None,
    key_times: Tensor | None = None,
) -> Tensor:
    """Equation 1 within each row; computed in float32 at least.

    Args:
        q: and what is not below, see ``inputs.Pointwise``.
        rows: of the packed batch, none longer than ``distance_bias``.

    Returns:
        (T, H, d) in the type of q; zeros behind the last row.

    Raises:
        ValueError: rows may be longer than there are distances, or a bias of times without times.
    """
    need_whole_rows(rows, "pointwise_attend")
    if rows.longest > len(distance_bias):
        raise ValueError(
            f"rows of up to {rows.longest} positions need as many biases; distance_bias holds "
            f"{len(distance_bias)}."
        )
    if time_bias is not None and (query_times is None or key_times is None):
        raise ValueError("time_bias needs query_times and key_times.")
    result = q.dtype
    kind = torch.promote_types(result, torch.float32)
    q, k, v, near = (typed(x, kind) for x in (q, k, v, distance_bias))
    if time_bias is not None:
        time_bias = typed(time_bias, kind)
    inputs = Pointwise(q, k, v, near, time_bias, query_times, key_times, scale)
    return typed(pointwise_op(inputs, rows, "auto"), result)
