"""Operations on packed rows by PyTorch alone, for machines without a compiler or Triton.

Rows of like length are taken together as padded blocks, and a block's gradient is that of its
operations, which are done again for it, so that only one block's intermediate values exist at a
time. Reading the lengths waits for the device, so these are no part of a captured step.

Symbols: n rows of a block, L its longest, T places.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sigma.ops.inputs import Gradients
from sigma.ops.registry import Kernels
from sigma.ops.rows import Rows

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
        length = lengths[empty + first : empty + last, None]
        index = offsets[rows][:, None] + torch.minimum(columns, length - 1)
        yield Block(index, columns < length, rows)


def pullback(
    function: Callable[..., Tensor], *tensors: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """The function's value, and what takes its gradient back to the tensors.

    By ``torch.func``, as below a registered operation there is no autograd.
    """
    value: Any = torch.func.vjp(function, *tensors)
    return value[0], value[1]


def kernels(
    function: Callable[[Any], Tensor],
    rowwise: tuple[str, ...],
    bytes_of_place: Callable[[Any], int],
    shapes: Callable[[Any], tuple[Tensor, Tensor]],
) -> Kernels:
    """An operation, all of whose inputs are tensors, from what it does with a block.

    Args:
        function: inputs, those of each place padded to (n, L, …) -> result (n, L, …).
        rowwise: names of the inputs that have a value at each place.
        bytes_of_place: inputs -> bytes of the largest intermediate value of a place.
        shapes: as of ``Operation``.
    """

    def parts(inputs: Any, rows: Rows) -> Iterator[tuple[Block, Any]]:
        size = bytes_of_place(inputs)
        names = [x for x in rowwise if getattr(inputs, x) is not None]
        for block in blocks_of(rows.offsets, lambda length: length * size):
            yield block, inputs._replace(**{x: getattr(inputs, x)[block.places] for x in names})

    def forward(inputs: Any, rows: Rows) -> tuple[Tensor, Tensor]:
        result, saved = (x.zero_() for x in shapes(inputs))
        for block, part in parts(inputs, rows):
            result[block.places[block.real]] = function(part)[block.real].to(result.dtype)
        return result, saved

    def backward(grad: Tensor, result: Tensor, saved: Tensor, inputs: Any, rows: Rows) -> Gradients:
        totals = {k: torch.zeros_like(x) for k, x in inputs._asdict().items() if x is not None}
        for block, part in parts(inputs, rows):
            y, pull = pullback(
                lambda *x, part=part: function(part._replace(**dict(zip(totals, x, strict=True)))),
                *(getattr(part, name) for name in totals),
            )
            above = grad[block.places] * block.real.view(*block.real.shape, *[1] * (grad.ndim - 1))
            for (name, total), x in zip(totals.items(), pull(above.to(y.dtype)), strict=True):
                if name in rowwise:
                    total[block.places[block.real]] = x[block.real]
                else:
                    total += x
        return tuple(totals.get(name) for name in inputs._fields)

    return Kernels(forward, backward)
