"""Each registered operation as PyTorch's own, for a program that runs where this project is not.

``torch.export`` sees an operation of ``sigma`` as one node; these take its place, by
``ExportedProgram.run_decompositions``. No shape depends on the rows' lengths: rows stand side by
side in a grid of ``longest`` columns, behind whose rows anything may stand. Recurrences are written
out position by position. For the scan that costs the least on a CPU, as only one state of each row
exists at a time (at 64 rows of 50, 128 channels and 32 states: half of what all exponentials at
once cost, a quarter of chunks of 8, and a fifth of a closed form of the last position).

ONNX has no binary search, so ``searchsorted``, of which sorted places and offsets are all that is
asked here, is replaced by counting.

Symbols: T places, B rows, M queries, L columns, G units.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.ops import moves
from sigma.ops.attend import attend_op, attention_of_block
from sigma.ops.conv import conv_op, shifted_products
from sigma.ops.gru import gru_op
from sigma.ops.inputs import Attend, Conv, Gru, Pointwise, Scan
from sigma.ops.pointwise import buckets, distances, pointwise_op
from sigma.ops.registry import Operation
from sigma.ops.rows import Rows
from sigma.ops.scan import scan_of_block, scan_op

Table = dict[Any, Callable[..., Any]]  # an operation, and what is put for it


class Grid:
    """The moves between ``size`` places that rows divide, and (B, ``width``) cells of them."""

    def __init__(self, offsets: Tensor, size: int, width: int) -> None:
        number, first = offsets.shape[0] - 1, offsets[:-1, None]
        self.place = (first + torch.arange(width)).clamp(max=size - 1)  # of each cell
        at = torch.arange(size)
        row = (torch.searchsorted(offsets, at, right=True) - 1).clamp(max=number - 1)
        self.cell = (row * width + at - offsets[row]).clamp(max=number * width - 1)

    def of(self, x: Tensor) -> Tensor:
        """(T, …) -> (B, L, …)."""
        return x[self.place]

    def packed(self, y: Tensor) -> Tensor:
        """(B, L, …) -> (T, …)."""
        return y.flatten(0, 1).index_select(0, self.cell)


def scan(x: Scan, rows: Rows) -> Tensor:
    grid = Grid(rows.offsets, x.u.shape[0], rows.longest)
    u, dt, B, C = (grid.of(v) for v in (x.u, x.dt, x.B, x.C))
    z = None if x.z is None else grid.of(x.z)
    return grid.packed(scan_of_block(x._replace(u=u, dt=dt, B=B, C=C, z=z)))


def conv(x: Conv, rows: Rows) -> Tensor:
    return shifted_products(x, rows)


def gru(x: Gru, rows: Rows) -> Tensor:
    """By PyTorch's and ONNX's own, which takes inputs; here the gates are, by a map that is 1."""
    grid = Grid(rows.offsets, x.gates.shape[0], rows.longest)
    gates = grid.of(x.gates)
    number, width, kind = gates.shape[0], gates.shape[2], gates.dtype
    start = torch.zeros(1, number, width // 3, dtype=kind)
    to_gates, nothing = torch.eye(width, dtype=kind), torch.zeros(width, dtype=kind)
    weights = [to_gates, x.weight, nothing, x.bias]
    y, _ = torch.gru(
        *(gates, start, weights, True, 1, 0.0), train=False, bidirectional=False, batch_first=True
    )
    return grid.packed(y)


def attend(x: Attend, rows: Rows) -> Tensor:
    """Of every place, of every cell of a grid, or of one place a row; without dropout."""
    number, lengths = rows.offsets.shape[0] - 1, rows.offsets.diff()
    keys = Grid(rows.offsets, x.k.shape[0], rows.longest)
    single = x.q.shape[0] == number
    queries = Grid(x.query_offsets, x.q.shape[0], 1 if single else rows.longest)
    column = torch.arange(rows.longest)
    visible = (column < lengths[:, None])[:, None].expand(-1, queries.place.shape[1], -1)
    if x.causal:
        position = queries.of(x.places) - rows.offsets[:-1, None]
        visible = visible & (column <= position[:, :, None])
    q, k, v = queries.of(x.q), keys.of(x.k), keys.of(x.v)
    y = attention_of_block(visible, 0.0, torch.default_generator, q, k, v)
    return y[:, 0] if single else queries.packed(y)


def pointwise(x: Pointwise, rows: Rows) -> Tensor:
    grid = Grid(rows.offsets, x.q.shape[0], rows.longest)
    q, k, v = (grid.of(part).transpose(1, 2) for part in (x.q, x.k, x.v))  # (B, H, L, d)
    scores = q @ k.mT + x.distance_bias[distances(rows.longest, q.device)]
    if x.time_bias is not None and x.query_times is not None and x.key_times is not None:
        gaps = grid.of(x.query_times)[:, :, None] - grid.of(x.key_times)[:, None]
        scores = scores + x.time_bias[buckets(gaps, x.time_bias.shape[0])][:, None]
    y = (F.silu(scores).tril() * x.scale) @ v
    return grid.packed(y.transpose(1, 2))


def gather(x: Tensor, index: Tensor, inverse: Tensor, inside: bool, onto: bool) -> Tensor:
    """See ``moves.gather``."""
    if inside:
        return x.index_select(0, index)
    y = x.index_select(0, index.clamp(max=x.shape[0] - 1))
    return y.masked_fill((index == x.shape[0]).view(-1, *[1] * (x.ndim - 1)), 0)


def put(operation: Operation, function: Callable[[Any, Rows], Tensor]) -> Table:
    """``function`` for the operation, whose second result nothing reads without a gradient."""

    def replacement(*values: Any) -> tuple[Tensor, Tensor]:
        rows = Rows(values[operation.tensors], values[-2])
        y = function(operation.inputs_of(values), rows)
        return y, y.new_empty(0)

    return {operation.op: replacement}


def count(width: int) -> Callable[..., Tensor]:
    """``torch.searchsorted`` of places and offsets of rows of at most ``width`` places."""

    def searchsorted(
        sorted_sequence: Tensor, values: Tensor, *, right: bool = False, **_: Any
    ) -> Tensor:
        beyond = (sorted_sequence.shape[0] + 1) * (width + 1)  # no place nor offset is
        at = sorted_sequence if right else sorted_sequence + 1
        marks = torch.zeros(beyond, dtype=at.dtype).scatter_add(0, at, torch.ones_like(at))
        return marks.cumsum(0)[values]

    return searchsorted


def irfft(x: Tensor, n: int, dim: int = -1, norm: None = None) -> Tensor:
    """``torch.fft.irfft``, which lies in memory otherwise than the tracing of PyTorch 2.13 says."""
    by_n = 2  # the default norm
    y: Tensor = torch.ops.aten._fft_c2r(x, [dim % x.ndim], by_n, n)
    return y.clone(memory_format=torch.contiguous_format)


def pad(x: Tensor, pad: list[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """``F.pad`` with a constant, which PyTorch's way to ONNX knows of real numbers alone."""
    if not x.is_complex():
        return torch.constant_pad_nd(x, pad, value or 0)
    return torch.view_as_complex(torch.constant_pad_nd(torch.view_as_real(x), [0, 0, *pad]))


def decompositions(width: int) -> Table:
    """What to put for each operation of a program without gradients.

    Args:
        width: of the longest row, at most.
    """
    table: Table = {
        moves._gather: gather,
        moves._spread: lambda x, index, offsets: x.index_select(0, index),
        torch.ops.aten.searchsorted.Tensor: count(width),
        torch.ops.aten.fft_irfft.default: irfft,
        torch.ops.aten.pad.default: pad,
    }
    functions = (
        *((scan_op, scan), (conv_op, conv), (gru_op, gru)),
        *((attend_op, attend), (pointwise_op, pointwise)),
    )
    for operation, function in functions:
        table |= put(operation, function)
    return table
