"""Operations on packed rows by PyTorch alone, for machines without a compiler or Triton.

Rows of like length are taken together as padded blocks, and a block's gradient is that of its
operations, which are done again for it, so that only one block's intermediate values exist at a
time. Reading the lengths waits for the device, so these are no part of a captured step.

Symbols: n rows of a block, L its longest, T places, d channels, N states, G hidden units, H heads.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# A block spans lengths up to this factor, so at most a third of it is padding on average.
GROWTH = 1.5
MIN_ROWS = 64  # below this a block costs more in calls than its padding would
BLOCK_BYTES = 32 * 2**20  # of the largest intermediate value of a block


class Block(NamedTuple):
    """Rows of like length: where their places lie, and which cells are real.

    Attributes:
        places: (n, L), clamped to the row.
        real: (n, L) bool.
        rows: (n,) which rows they are.
    """

    places: Tensor
    real: Tensor
    rows: Tensor


def block_rows(lengths: list[int], bytes_of_row: Callable[[int], int]) -> list[tuple[int, int]]:
    """``(first, last + 1)`` of each block in ascending lengths.

    Args:
        lengths: ascending.
        bytes_of_row: length -> bytes of its largest intermediate value.
    """
    blocks, first = [], 0
    for i, length in enumerate(lengths):
        uneven = length > max(2, lengths[first] * GROWTH) and i - first >= MIN_ROWS
        if i > first and (uneven or (i - first + 1) * bytes_of_row(length) > BLOCK_BYTES):
            blocks.append((first, i))
            first = i
    return [*blocks, (first, len(lengths))] if lengths else []


def blocks_of(offsets: Tensor, bytes_of_row: Callable[[int], int]) -> Iterator[Block]:
    """The rows that hold anything, in blocks."""
    lengths, order = offsets.diff().sort(stable=True)
    ascending = lengths.tolist()
    empty = ascending.count(0)
    for first, last in block_rows(ascending[empty:], bytes_of_row):
        rows = order[empty + first : empty + last]
        columns = torch.arange(ascending[empty + last - 1], device=offsets.device)
        own = lengths[empty + first : empty + last, None]
        index = offsets[rows][:, None] + torch.minimum(columns, own - 1)
        yield Block(index, columns < own, rows)


def pullback(
    function: Callable[..., Tensor], *tensors: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """The function's value, and what takes its gradient back to the tensors.

    By ``torch.func``, as below a registered operation there is no autograd.
    """
    value: Any = torch.func.vjp(function, *tensors)
    return value[0], value[1]


def by_blocks(
    function: Callable[..., Tensor],
    blocks: Iterator[Block],
    out: Tensor,
    rowwise: Sequence[Tensor | None],
    shared: Sequence[Tensor],
) -> Tensor:
    """``function(*padded rowwise (n, L, …), *shared)`` of every block, put into ``out`` (T, …)."""
    for block in blocks:
        parts = [None if x is None else x[block.places] for x in rowwise]
        out[block.places[block.real]] = function(*parts, *shared)[block.real].to(out.dtype)
    return out


def gradients_by_blocks(
    function: Callable[..., Tensor],
    blocks: Iterator[Block],
    grad: Tensor,
    rowwise: Sequence[Tensor | None],
    shared: Sequence[Tensor],
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Gradients of the rowwise values (zeros behind the last row) and of the shared ones."""
    rowwise_grads = [None if x is None else torch.zeros_like(x) for x in rowwise]
    shared_grads = [torch.zeros_like(x) for x in shared]

    def tensors_alone(*tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        return function(*(None if x is None else next(rest) for x in rowwise), *rest)

    for block in blocks:
        parts = [x[block.places] for x in rowwise if x is not None]
        y, pull = pullback(tensors_alone, *parts, *shared)
        above = grad[block.places] * block.real.view(*block.real.shape, *[1] * (grad.ndim - 1))
        grads = pull(above.to(y.dtype))
        for total, part in zip((g for g in rowwise_grads if g is not None), grads, strict=False):
            total[block.places[block.real]] = part[block.real]
        for total, part in zip(shared_grads, grads[len(parts) :], strict=True):
            total += part
    return rowwise_grads, shared_grads


def scan(
    u: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor | None, A: Tensor, D: Tensor,
    dt_bias: Tensor,
) -> Tensor:  # fmt: skip
    """``reference.selective_scan`` of a block, (n, L, d) -> (n, L, d)."""
    delta = F.softplus(dt + dt_bias)
    h = torch.zeros(u.shape[0], *A.shape, dtype=A.dtype, device=u.device)
    ys = []
    for t in range(u.shape[1]):
        step = delta[:, t, :, None]
        h = torch.exp(step * A) * h + step * u[:, t, :, None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1))
    y = torch.stack(ys, dim=1) + D * u
    return y if z is None else y * F.silu(z)


def gru(gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``reference.gru`` of a block, (n, L, 3 G) -> (n, L, G)."""
    h, hs = gates.new_zeros(len(gates), weight.shape[1]), []
    for t in range(gates.shape[1]):
        (ar, az, an), (ur, uz, un) = (
            gates[:, t].chunk(3, -1),
            F.linear(h, weight, bias).chunk(3, -1),
        )
        z = torch.sigmoid(az + uz)
        h = (1 - z) * torch.tanh(an + torch.sigmoid(ar + ur) * un) + z * h
        hs.append(h)
    return torch.stack(hs, dim=1)


def conv(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor, silu: bool) -> Tensor:
    """``reference.causal_conv`` of packed rows, (T, d) -> (T, d): a sum of shifted products."""
    size, k = x.shape[0], weight.shape[1]
    places = torch.arange(size, device=x.device)
    position = places - offsets[torch.searchsorted(offsets, places, right=True) - 1]
    y = torch.addcmul(bias, x, weight[:, -1])
    for s in range(1, k):
        earlier = F.pad(x, (0, 0, s, 0))[:size].masked_fill((position < s)[:, None], 0)
        y = torch.addcmul(y, earlier, weight[:, k - 1 - s])
    y = F.silu(y) if silu else y
    return y.masked_fill((places >= offsets[-1])[:, None], 0)


def attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, dropout: float, generator: torch.Generator
) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of a block, (n, Q, H, d) -> (n, Q, H, d).

    Args:
        q: (n, Q, H, d).
        k: (n, L, H, d).
        v: (n, L, H, d).
        visible: bool (n, Q, L).
        dropout: of the weights.
        generator: of the dropout's draws.
    """
    scores = torch.einsum("nqhd,nlhd->nhql", q * q.shape[-1] ** -0.5, k)
    weights = scores.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    if dropout:
        draws = torch.rand(weights.shape, generator=generator, device=weights.device)
        weights = weights * (draws >= dropout) / (1 - dropout)
    return torch.einsum("nhql,nlhd->nqhd", weights, v)
