"""Moves of states between places: taking, flipping, shifting, padding and packing.

All are gathers, and so are their gradients: a scatter would be slow where it must be deterministic.

Symbols: T places, B rows, M places whose state is wanted, L columns of a padded batch, D channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sigma.ops.registry import register
from sigma.ops.rows import Rows
from sigma.ops.stream import Stream, need_whole_rows


def select(x: Tensor, index: Tensor, inside: bool) -> Tensor:
    """``x[index]``, zeros where an index is ``len(x)``; there are none if ``inside``."""
    if inside:
        return x.index_select(0, index)
    out = x.index_select(0, index.clamp(max=x.shape[0] - 1))
    beyond = index == x.shape[0]
    if x.device.type == "cpu":  # where a mask that is broadcast is slow
        return out.index_fill_(0, beyond.nonzero().squeeze(1), 0)
    return out.masked_fill_(beyond.view(-1, *[1] * (x.ndim - 1)), 0)


def sum_gathered(grad: Tensor, inverse: Tensor, onto: bool) -> Tensor:
    """What entries (n, …) pass to the places that they hold, (T, …); arguments as of ``gather``."""
    if inverse.shape[1] == 1:
        return select(grad, inverse[:, 0], onto)
    every = select(grad, inverse.flatten(), onto)
    return every.view(*inverse.shape, *grad.shape[1:]).sum(1)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[2])
    ctx.onto = inputs[4]


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _sum_gathered(grad, *ctx.saved_tensors, ctx.onto), None, None, None, None


_sum_gathered = register(
    "sum_gathered",
    "(Tensor grad, Tensor inverse, bool onto) -> Tensor",
    sum_gathered,
    lambda grad, inverse, onto: grad.new_empty(inverse.shape[0], *grad.shape[1:]),
)
_gather = register(
    "gather",
    "(Tensor x, Tensor index, Tensor inverse, bool inside, bool onto) -> Tensor",
    lambda x, index, inverse, inside, onto: select(x, index, inside),
    lambda x, index, inverse, inside, onto: x.new_empty(index.shape[0], *x.shape[1:]),
    _save,
    _backward,
)


def gather(x: Tensor, index: Tensor, inverse: Tensor, inside: bool, onto: bool) -> Tensor:
    """States (n, …) at ``index`` (n,) of ``x`` (T, …); zeros where an index is T.

    Args:
        x: states.
        index: (n,) int64.
        inverse: (T, k) the entries of ``index`` that hold each place, n where there is none.
        inside: no index is T.
        onto: no entry of ``inverse`` is n.
    """
    y: Tensor = _gather(x, index, inverse, inside, onto)
    return y


class Places(NamedTuple):
    """Places whose states are wanted.

    Attributes:
        at: (M,) int64 among T places.
        inverse: (T, 1) the entry of ``at`` that names each place; M where there is none.
    """

    at: Tensor
    inverse: Tensor


def entries(index: Tensor, places: Tensor) -> Tensor:
    """The first entry of ``index`` (M,), ascending, that names each of ``places``, or M."""
    entry = torch.searchsorted(index, places).clamp(max=index.shape[0] - 1)
    return torch.where(index[entry] == places, entry, index.shape[0])


def places_of(index: Tensor, size: int) -> Places:
    """``index`` (M,), ascending, among ``size`` places.

    Of places named more than once only the first passes a gradient: the others fill up a batch.
    """
    every = torch.arange(size, device=index.device)
    return Places(index, entries(index, every)[:, None])


def take(x: Tensor, places: Places) -> Tensor:
    """States (M, …) of ``x`` (T, …)."""
    return gather(x, places.at, places.inverse, True, False)


def flip_index(rows: Rows, size: int, keep: int) -> Tensor:
    """Where each place of the flipped states reads from, (T,) int64; it is its own inverse.

    Of a row of n states the first n - keep are reversed; the last ``keep`` stay, and so does a row
    of at most ``keep`` and what lies behind the last row.
    """
    need_whole_rows(rows, "flip")
    places = torch.arange(size, device=rows.offsets.device)
    row = rows.row_of(places)
    last = rows.offsets[(row + 1).clamp(max=rows.offsets.shape[0] - 1)] - keep - 1
    first = rows.offsets[row]
    return torch.where(places <= last, first + last - places, places)


def flip(x: Tensor, rows: Rows, keep: int) -> Tensor:
    """The first n - keep states of each row reversed, (T, …) -> (T, …); see ``flip_index``."""
    index = flip_index(rows, x.shape[0], keep)
    return gather(x, index, index[:, None], True, True)


def earlier(x: Tensor, rows: Rows, back: Tensor) -> Tensor:
    """The states that stand ``back`` (k,) places before each in its row, (T, D) -> (T, k D).

    Zeros where a row has none, and behind the last row.
    """
    size, width = x.shape[0], back.shape[0]
    places = torch.arange(size, device=x.device)
    row = rows.row_of(places)
    first = rows.offsets[row]
    end = rows.offsets[(row + 1).clamp(max=rows.offsets.shape[0] - 1)]
    source = places[:, None] - back
    real = places < rows.offsets[-1]
    index = torch.where((source >= first[:, None]) & real[:, None], source, size)
    reader = places[:, None] + back
    column = reader * width + torch.arange(width, device=x.device)
    inverse = torch.where((reader < end[:, None]) & real[:, None], column, size * width)
    return gather(x, index.flatten(), inverse, False, False).view(size, width * x.shape[1])


def unfold(x: Tensor, rows: Rows, width: int) -> Tensor:
    """Each state beside those before it in its row, oldest first, (T, D) -> (T, width D).

    Zeros stand before a row's start, and behind the last row.
    """
    if isinstance(rows, Stream):
        windows = rows.window("unfold", x, width - 1).unfold(1, width, 1)  # (B, n, D, width)
        return windows.transpose(2, 3).reshape(x.shape[0], -1)
    return earlier(x, rows, torch.arange(width - 1, -1, -1, device=x.device))


def delay(x: Tensor, rows: Rows, number: int) -> Tensor:
    """The state ``number`` places before each in its row, (T, D) -> (T, D).

    Zeros where a row has none, and behind the last row.
    """
    if isinstance(rows, Stream):
        return rows.window("delay", x, number)[:, : rows.width].flatten(0, 1)
    return earlier(x, rows, torch.full((1,), number, device=x.device))


def grid_index(rows: Rows, size: int, width: int) -> tuple[Tensor, Tensor]:
    """The place of each cell of (B, L), T where there is none, and the cell of each place."""
    offsets = rows.offsets
    columns = torch.arange(width, device=offsets.device)
    lengths = offsets.diff()
    place = torch.where(columns < lengths[:, None], offsets[:-1, None] + columns, size)
    at = torch.arange(size, device=offsets.device)
    row = rows.row_of(at)
    cell = torch.where(at < offsets[-1], row * width + at - offsets[row], lengths.shape[0] * width)
    return place.flatten(), cell


def padded(x: Tensor, rows: Rows, width: int) -> Tensor:
    """Rows side by side, (T, …) -> (B, L, …), zeros behind each row's end.

    Args:
        x: states, or item ids.
        rows: none longer than ``width``.
        width: L.

    Raises:
        ValueError: a row may be longer than ``width``.
    """
    need_whole_rows(rows, "padded")
    if rows.longest > width:
        raise ValueError(
            f"rows of up to {rows.longest} positions do not fit the {width} columns of this model."
        )
    place, cell = grid_index(rows, x.shape[0], width)
    out = gather(x, place, cell[:, None], False, False)
    return out.view(rows.offsets.shape[0] - 1, width, *x.shape[1:])


def packed(x: Tensor, rows: Rows, size: int) -> Tensor:
    """Rows end to end, (B, L, …) -> (T, …): what ``padded`` took apart; zeros behind the last row.

    Args:
        x: states.
        rows: none longer than L.
        size: T.
    """
    place, cell = grid_index(rows, size, x.shape[1])
    return gather(x.flatten(0, 1), cell, place[:, None], False, False)


def padded_places(rows: Rows, places: Tensor, width: int) -> Places:
    """``places`` (M,) of a packed batch, ascending, among the cells (B L,) of the padded one.

    A place behind the last row, which fills up a batch, is given the last cell.
    """
    row = rows.row_of(places)
    size = (rows.offsets.shape[0] - 1) * width
    return places_of((row * width + places - rows.offsets[row]).clamp(max=size - 1), size)


def whole_rows(number: int, width: int, device: torch.device) -> Rows:
    """Rows that are all ``width`` long: the cells of a padded batch, row after row."""
    return Rows(torch.arange(0, (number + 1) * width, width, device=device), width)


def sum_rows(x: Tensor, index: Tensor, offsets: Tensor) -> Tensor:
    """The sum of each row's entries, (M, …) -> (B, …); row b's begin at offsets[b]."""
    # Unsafe is without a look at the offsets, which would wait for the device.
    total = torch.segment_reduce(x.flatten(1), "sum", offsets=offsets, unsafe=True, initial=0)
    return total.view(offsets.shape[0] - 1, *x.shape[1:])


def _save_rows(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[1:])


def _spread_backward(ctx, grad):  # type: ignore[no-untyped-def]
    return _sum_rows(grad.contiguous(), *ctx.saved_tensors), None, None


_sum_rows = register(
    "sum_rows",
    "(Tensor x, Tensor index, Tensor offsets) -> Tensor",
    sum_rows,
    lambda x, index, offsets: x.new_empty(offsets.shape[0] - 1, *x.shape[1:]),
)
_spread = register(
    "spread",
    "(Tensor x, Tensor index, Tensor offsets) -> Tensor",
    lambda x, index, offsets: x.index_select(0, index),
    lambda x, index, offsets: x.new_empty(index.shape[0], *x.shape[1:]),
    _save_rows,
    _spread_backward,
)


def spread(x: Tensor, rows: Rows, places: Tensor) -> Tensor:
    """The value (B, …) of each place's row, (M, …); the last row's behind the last row.

    Args:
        x: (B, …), one value a row.
        rows: of the packed batch.
        places: (M,) ascending.
    """
    index = rows.row_of(places).clamp(max=rows.offsets.shape[0] - 2)
    firsts = torch.searchsorted(places, rows.offsets[:-1])
    stop = firsts.new_full((1,), places.shape[0])
    y: Tensor = _spread(x, index, torch.cat([firsts, stop]))
    return y
