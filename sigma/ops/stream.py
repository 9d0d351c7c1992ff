"""Rows that are read on, a few items at a time, at a cost that no history's length changes.

What a row's past still does to its states is what it left in the operations that cross positions:
the scan's and the GRU's state, the last inputs of a convolution or a delay. In a model's forward
pass a ``Stream`` stands for the batch's rows. To those operations it hands out what they left, in
the order in which the model calls them, and takes what they leave now. Whatever else asks where
rows lie has need of items that are gone, and is refused. So a model gives what the pass over the
whole rows gives, to rounding, or nothing.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sigma.ops.rows import Rows

Forward = Callable[[Tensor, Rows, Tensor], Tensor]  # of a model


class Carry(NamedTuple):
    """What the rows left in one call of an operation, (B, …)."""

    operation: str
    value: Tensor


class Stream(Rows):
    """B rows, of each of which the next n items are read at a time.

    ``longest`` is the largest of numbers, so that how long rows are decides no model's way.

    Args:
        number: B.

    Attributes:
        lengths: (B,) int64, items read so far; on the CPU.
        carries: of each call, in order; none before the first items.
        width: n.
        device: of the items.
    """

    lengths: Tensor
    carries: list[Carry]
    width: int
    device: torch.device

    def __new__(cls, number: int) -> "Stream":
        return super().__new__(cls, torch.empty(0), sys.maxsize)

    def __init__(self, number: int) -> None:
        self.lengths = torch.zeros(number, dtype=torch.int64)
        self.carries, self.width = [], 0
        self.left: list[Carry] = []  # what takes the place of ``carries``, as far as it is there

    @property
    def nbytes(self) -> int:
        """Bytes of what the rows left."""
        return sum(value.nbytes for _, value in self.carries)

    @property
    def begun(self) -> bool:
        """Whether any row has an item."""
        return bool(self.lengths.any())

    @torch.inference_mode()
    def read(self, forward: Forward, items: Tensor) -> Tensor:
        """States (B, D) after the next n items of each row.

        Args:
            forward: a model.
            items: (B, n) int64.

        Raises:
            ValueError: the model needs the items before; the stream stays where it was.
        """
        self.width, self.device, self.left = items.shape[1], items.device, []
        places = torch.arange(self.width - 1, items.numel(), self.width, device=items.device)
        states = forward(items.flatten(), self, places)
        if self.begun and len(self.left) != len(self.carries):
            raise ValueError("This model cannot go on: it calls fewer operations than before.")
        self.carries, self.lengths = self.left, self.lengths + self.width
        return states

    @classmethod
    def joined(cls, streams: Sequence["Stream"]) -> "Stream":
        """The rows of several streams that one model has read, in one."""
        stream = cls(sum(len(s.lengths) for s in streams))
        stream.lengths = torch.cat([s.lengths for s in streams])
        pattern = next((s.carries for s in streams if s.carries), [])
        for i, (operation, value) in enumerate(pattern):
            parts = [
                s.carries[i].value
                if s.carries
                else value.new_zeros(len(s.lengths), *value.shape[1:])
                for s in streams
            ]
            stream.carries.append(Carry(operation, torch.cat(parts)))
        return stream

    def parted(self) -> list["Stream"]:
        """A stream of each row."""
        streams = [Stream(1) for _ in self.lengths]
        for row, stream in enumerate(streams):
            here = slice(row, row + 1)
            stream.lengths = self.lengths[here].clone()
            stream.carries = [Carry(name, value[here].clone()) for name, value in self.carries]
        return streams

    # --- for the operations ---

    def before(self, operation: str, *shape: int) -> Tensor | None:
        """What the call that is due left before, of this shape; None at the rows' start."""
        if not self.begun:
            return None
        for name, value in self.carries[len(self.left) :][:1]:
            if (name, value.shape) == (operation, shape):
                return value
        raise ValueError(f"This model cannot go on: its call of {operation} is a new one.")

    def leave(self, operation: str, value: Tensor) -> None:
        """Leave a value (B, …) for the next items."""
        self.left.append(Carry(operation, value.clone()))  # a view would hold all it is of

    def window(self, operation: str, x: Tensor, size: int) -> Tensor:
        """The last ``size`` inputs before these, and these, (B n, …) -> (B, size + n, …).

        Zeros stand before a row's start.
        """
        x = self.side_by_side(x)
        shape = len(x), size, *x.shape[2:]
        before = self.before(operation, *shape)
        joined = torch.cat([x.new_zeros(shape) if before is None else before, x], dim=1)
        self.leave(operation, joined[:, self.width :])
        return joined

    def side_by_side(self, x: Tensor) -> Tensor:
        """(B n, …) -> (B, n, …)."""
        return x.unflatten(0, (-1, self.width))

    # --- as rows ---

    @property
    def offsets(self) -> Tensor:
        raise ValueError(
            "This model cannot go on from item to item: it asks where its rows lie, instead of "
            "crossing positions by causal_conv, delay, gru, selective_scan and unfold alone."
        )

    @property
    def reach(self) -> int:
        return int(self.lengths.max()) + self.width

    def positions(self, size: int) -> Tensor:
        return (self.lengths[:, None] + torch.arange(self.width)).flatten().to(self.device)


def need_whole_rows(rows: Rows, operation: str) -> None:
    """Raises ValueError where rows are a stream, of whose past the operation has not enough."""
    if isinstance(rows, Stream):
        raise ValueError(
            f"This model cannot go on from item to item: {operation} reads all of a row again as "
            "each item comes."
        )
