"""Batches, gathered vectorised from the flat array; no Python runs per sample."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sigma.errors import UserError


class Batch(NamedTuple):
    """What a model and the task see of the data.

    Attributes:
        items: (B, L) int64, left-aligned item ids, 0 is padding.
        lengths: (B,) int64, real items in each row, at least 1 (a mask token is one).
        users: (B,) int64, user index of each row.
        targets: (M,) int64, item ids to predict (M = B for one target a row).
        target_rows: (M,) int64, the row each target belongs to; rows without one (twins) stand
            behind all others.
        target_columns: (M,) int64, the column whose state predicts it.
        history_lengths: (B,) int64, length of the whole history, before it was cut to L.
        seen_rows: (S,) int64 rows of ``seen_items``; empty unless the history is masked.
        seen_items: (S,) int64 items to leave out of that row's ranking.
    """

    items: Tensor
    lengths: Tensor
    users: Tensor
    targets: Tensor
    target_rows: Tensor
    target_columns: Tensor
    history_lengths: Tensor
    seen_rows: Tensor
    seen_items: Tensor


# Of a device's free memory the flat arrays may take this share; larger ones stay on the host.
DEVICE_SHARE = 0.25


class FlatSequences:
    """The flat arrays as tensors on one device, and the gather that makes batches of them there.

    Positions and spans may lie elsewhere: they are a few kilobytes a batch.

    Args:
        items: (n,) int32 or int64 item ids.
        offsets: (users + 1,) int64.
        max_length: L, the number of last items a row may hold.
    """

    def __init__(self, items: Tensor, offsets: Tensor, max_length: int) -> None:
        self.items = items
        self.offsets = offsets
        self.max_length = max_length

    def on(self, device: torch.device) -> "FlatSequences":
        """The same on another device, or unchanged where they take too much of its memory."""
        if device == self.items.device:
            return self
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self.items.nbytes + self.offsets.nbytes > DEVICE_SHARE * free:
                return self
        return FlatSequences(self.items.to(device), self.offsets.to(device), self.max_length)

    def batch(self, positions: Tensor, trim: bool = False, mask_history: bool = False) -> Batch:
        """One row per target position; the input is the last L items before it.

        Args:
            positions: (B,) int64 target positions.
            trim: cut the columns to the longest row instead of padding to L.
            mask_history: fill ``seen_*`` with each row's whole history (the target kept in).
        """
        positions = positions.to(self.items.device)
        users = torch.searchsorted(self.offsets, positions, right=True) - 1
        history = positions - self.offsets[users]
        lengths = history.clamp(max=self.max_length)
        items = self._gather(positions - lengths, lengths, trim)
        targets = self.items[positions].long()
        rows = torch.arange(len(positions), device=positions.device)
        if mask_history:
            before = self.offsets[users] - (history.cumsum(0) - history)
            index = before.repeat_interleave(history)
            index += torch.arange(len(index), device=positions.device)
            seen_items = self.items[index]
            del index  # whole histories, of users with thousands: every copy counts
            # A repeated target is still to be ranked.
            other = seen_items != self.items[positions].repeat_interleave(history)
            seen_rows = rows.repeat_interleave(history)[other]
            seen_items = seen_items[other].long()
        else:
            seen_rows = seen_items = rows.new_empty(0)
        return Batch(
            items, lengths, users, targets, rows, lengths - 1, history, seen_rows, seen_items
        )

    def window(self, spans: Tensor, trim: bool = False) -> Batch:
        """One row per span of positions, without targets: an objective adds them.

        Args:
            spans: (B, 2) int64, first position and one past the last.
            trim: as in ``batch``.
        """
        first, stop = spans.T.contiguous().to(self.items.device)
        users = torch.searchsorted(self.offsets, first, right=True) - 1
        items = self._gather(first, stop - first, trim)
        none = stop.new_empty(0)
        history = stop - self.offsets[users]
        return Batch(items, stop - first, users, none, none, none, history, none, none)

    def _gather(self, first: Tensor, lengths: Tensor, trim: bool) -> Tensor:
        """Item ids (B, L) of the spans, zeros on the right."""
        longest = int(lengths.max())  # of a cloze window L + 1
        width = longest if trim else max(longest, self.max_length)
        columns = torch.arange(width, device=first.device)
        index = (first[:, None] + columns).clamp(max=len(self.items) - 1)
        return self.items[index].long() * (columns < lengths[:, None])


class StepGenerator(torch.Generator):
    """A process's own generator; with several, ``shared`` is one that draws alike in all."""

    shared: torch.Generator


class BatchLoader:
    """An iterable of batches whose order and content are a pure function of seed and epoch.

    Lightning calls ``set_epoch`` through ``batch_sampler``, and saves ``state_dict`` in
    checkpoints, so a run resumed in the middle of an epoch goes on with the very next batch.

    Args:
        make: rows and a generator (on the CPU, for what is drawn at random) -> batch.
        rows: (rows, …) what batches are made of, such as target positions.
        batch_size: rows per step over all ranks (the last batch may be smaller).
        shuffle: draw a new order each epoch.
        seed: of the shuffle.
        rank: this process among ``world_size``; every row goes to exactly one rank.

    Raises:
        UserError: fewer rows a step than processes.
    """

    def __init__(
        self,
        make: Callable[[Tensor, torch.Generator], Batch],
        rows: Tensor,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < world_size:
            raise UserError(
                f"A batch of {batch_size} leaves some of the {world_size} processes without a row; "
                "dataset.batch_size is of all of them together, so give at least one each."
            )
        self.make = make
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.position = 0
        self._resumed = False

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for ``set_epoch`` (a ``sampler`` would be taken as torch's)."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(len(self.rows), self.batch_size)
        # A rest smaller than the number of ranks would leave a rank without a row to step on.
        return full + (rest >= self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        if not self._resumed:
            self.position = 0
        self._resumed = False
        order = self.rows
        generator = StepGenerator()
        # Within the 64 bits that torch's generators take.
        epoch_seed = (self.seed * 1_000_003 + self.epoch + 2**63) % 2**64 - 2**63
        if self.shuffle:
            generator.manual_seed(epoch_seed)
            order = order[torch.randperm(len(order), generator=generator).to(order.device)]
        while self.position < len(self):
            start = self.position * self.batch_size
            chosen = order[start : start + self.batch_size][self.rank :: self.world_size]
            # Of the place in the epoch alone: a resumed run draws what it would have drawn.
            place = self.position * self.world_size + self.rank + 1
            generator.manual_seed((epoch_seed * 1_000_003 + place) % 2**63)
            if self.world_size > 1:
                generator.shared = torch.Generator().manual_seed(
                    (epoch_seed * 1_000_003 + self.position + 1) % 2**63
                )
            self.position += 1
            yield self.make(chosen.contiguous(), generator)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.position = state["position"]
        self._resumed = True
