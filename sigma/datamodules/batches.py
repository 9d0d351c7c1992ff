"""Batches of rows laid end to end, gathered from the flat array without a loop over samples."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.datamodules.spans import Spans
from sigma.errors import UserError
from sigma.ops.rows import Rows, rows_of

LISTED = 2**26
"""Most rows whose order is a list."""

ROUNDS = 4
NOTHING = torch.empty(0, dtype=torch.int64)


class Batch(NamedTuple):
    """What a model and the task see: T places, B rows, M targets, S items of whole histories."""

    items: Tensor  # (T,) int64, the rows' item ids end to end; 0 behind the last row
    rows: Rows  # where they lie; ``longest`` is the same for all batches of a loader
    places: Tensor  # (M,) int64, ascending, into T: whose state predicts (one a row: M = B)
    targets: Tensor  # (M,) int64, item ids to predict; 0 where a place only fills the batch up
    num_targets: int  # targets that are none of those, at least 1
    users: Tensor  # (B,) int64, user index of each row
    history_lengths: Tensor  # (B,) int64, length of the history before it was cut to L
    history: Tensor = NOTHING  # (S,) int64, whole histories end to end; in evaluation alone
    twins: tuple[Tensor, Rows] | None = None  # other sequences, the b-th with the target of row b


def size_class(number: int) -> int:
    """``number`` rounded up to one of eight sizes between two powers of two."""
    step = 1 << max(number.bit_length() - 4, 0)
    return -(-number // step) * step


def filled(batch: Batch) -> Batch:
    """The batch with T, and M where it is not B, rounded up to a few sizes.

    A step over it can then be captured once and replayed. Behind the last row stands at least one
    place, at which the states that only fill up are taken.
    """

    def longer(values: Tensor) -> Tensor:
        return F.pad(values, (0, size_class(len(values) + 1) - len(values)))

    def with_longer_times(rows: Rows) -> Rows:
        if rows.times is None:
            return rows
        after = None if rows.next_times is None else longer(rows.next_times)
        return rows._replace(times=longer(rows.times), next_times=after)

    items, rows = longer(batch.items), with_longer_times(batch.rows)
    places, targets = batch.places, batch.targets
    if len(places) != len(batch.users):
        more = size_class(len(places)) - len(places)
        places = F.pad(places, (0, more), value=len(items) - 1)
        targets = F.pad(targets, (0, more))
    twins = batch.twins and (longer(batch.twins[0]), with_longer_times(batch.twins[1]))
    return batch._replace(items=items, rows=rows, places=places, targets=targets, twins=twins)


def pinned(batch: Batch, pin_memory: bool = True) -> Batch:
    """The batch in memory from which a device copies while the host goes on.

    All of it lies in one piece, since to pin memory takes longer than to fill it.
    """
    tensors = list(tensors_of(batch))
    sizes = [tensor.numel() for tensor in tensors]
    memory = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=pin_memory)
    pieces = iter(torch.cat(tensors, out=memory).split(sizes))
    result: Batch = with_tensors(batch, pieces)
    return result


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a batch, or of a part of it, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_of(part)


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with other tensors, in the order of ``tensors_of``."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple):
        parts = [with_tensors(part, tensors) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


@dataclass
class FlatSequences:
    """All histories as tensors, and the gather that makes batches of them."""

    items: Tensor  # (n,) int32 or int64
    offsets: Tensor  # (users + 1,) int64
    max_length: int  # L, the number of last items a row may hold
    times: Tensor | None = None  # (n,) int64 beside ``items``; rows carry them, if they are there
    next_times: bool = False  # rows carry that of each place's next item, too

    def batch(self, positions: Tensor, evaluates: bool = False) -> Batch:
        """One row per target position (B,); the input is the last L items before it."""
        users = torch.searchsorted(self.offsets, positions, right=True) - 1
        history = positions - self.offsets[users]
        lengths = history.clamp(max=self.max_length)
        items, rows = self.packed(positions - lengths, lengths, self.max_length)
        return Batch(
            items=items,
            rows=rows,
            places=rows.offsets[1:] - 1,
            targets=self.items[positions].long(),
            num_targets=len(positions),
            users=users,
            history_lengths=history,
            history=self.gather(positions - history, history) if evaluates else NOTHING,
        )

    def window(self, spans: Tensor, longest: int | None = None) -> Batch:
        """One row per span (B, 2) of positions, without targets: an objective adds them.

        A span is a first position and one past the last; ``longest`` is that of ``Rows``, or L.
        """
        first, stop = spans.T.contiguous()
        users = torch.searchsorted(self.offsets, first, right=True) - 1
        items, rows = self.packed(first, stop - first, longest or self.max_length)
        return Batch(
            items=items,
            rows=rows,
            places=NOTHING,
            targets=NOTHING,
            num_targets=0,
            users=users,
            history_lengths=stop - self.offsets[users],
        )

    def packed(self, first: Tensor, lengths: Tensor, longest: int) -> tuple[Tensor, Rows]:
        """Item ids (T,) int64 of spans, end to end, and the rows they make."""
        index, rows = self.index(first, lengths), rows_of(lengths, longest)
        if self.times is not None:
            after = self.times[index + 1] if self.next_times else None
            rows = rows._replace(times=self.times[index], next_times=after)
        return self.items[index].long(), rows

    def gather(self, first: Tensor, lengths: Tensor) -> Tensor:
        """Item ids (T,) int64 of spans, end to end."""
        return self.items[self.index(first, lengths)].long()

    def index(self, first: Tensor, lengths: Tensor) -> Tensor:
        """The positions (T,) of spans, end to end."""
        before = first - (lengths.cumsum(0) - lengths)
        index = before.repeat_interleave(lengths)
        index += torch.arange(len(index))
        return index


def shuffled(number: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A random order of ``number`` things: a function from places (m,) to which stands there.

    Up to ``LISTED`` it is one of all orders, each as probable. Beyond, a list would take minutes
    and gigabytes; there a cipher computes it (Black and Rogaway, "Ciphers with arbitrary finite
    domains", CT-RSA 2002): a number is two digits, to each of which in turn a hash of the other is
    added, so that different places stay different; a result of ``number`` or more is enciphered
    again.
    """
    if number <= LISTED:
        return torch.randperm(number, generator=generator).__getitem__
    base = math.isqrt(number - 1) + 1
    keys = torch.randint(2**62, (ROUNDS, 2), generator=generator).tolist()

    def encipher(x: Tensor) -> Tensor:
        high, low = x // base, x % base
        for one, other in keys:
            high = (high + scrambled(low + one)) % base
            low = (low + scrambled(high + other)) % base
        return high * base + low

    def order(places: Tensor) -> Tensor:
        result = encipher(places)
        while (beyond := result >= number).any():
            result[beyond] = encipher(result[beyond])
        return result

    return order


def scrambled(x: Tensor) -> Tensor:
    """A hash (m,) from 0 below 2**62 of whole numbers (m,): the finalizer of SplitMix64."""
    x = (x ^ (x >> 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 with a sign
    x = (x ^ (x >> 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return (x ^ (x >> 31)) & (2**62 - 1)


class StepGenerator(torch.Generator):
    """One process's generator; with several, ``shared`` is one that draws the same in all."""

    shared: torch.Generator


@dataclass(eq=False)
class BatchLoader:
    """An iterable of batches whose order and content are a pure function of seed and epoch.

    Lightning calls ``set_epoch`` through ``batch_sampler``, and saves ``state_dict`` in
    checkpoints, so a run resumed in the middle of an epoch goes on with the very next batch.

    Raises:
        UserError: fewer rows a step than processes.
    """

    make: Callable[[Tensor, torch.Generator], Batch]  # of rows; the generator is for its draws
    rows: Tensor | Spans  # (rows, …) what batches consist of, such as target positions
    batch_size: int  # rows per step over all ranks (the last batch may be smaller)
    shuffle: bool = False  # a new order each epoch
    seed: int = 0
    rank: int = 0  # of this process; every row goes to exactly one rank
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < self.world_size:
            raise UserError(
                f"A batch of {self.batch_size} leaves some of the {self.world_size} processes "
                "without a row; batch_size is of all of them together, so give at least one each."
            )
        self.epoch = self.position = 0
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
        number = len(self.rows)
        order = None
        generator = StepGenerator()
        # Within the 64 bits that torch's generators take.
        epoch_seed = (self.seed * 1_000_003 + self.epoch + 2**63) % 2**64 - 2**63
        if self.shuffle:
            generator.manual_seed(epoch_seed)
            order = shuffled(number, generator)

        def seed_of(place: int) -> int:
            """Of the place in the epoch alone: a resumed run draws what it would have drawn."""
            return (epoch_seed * 1_000_003 + place + 1) % 2**63

        while self.position < len(self):
            start = self.position * self.batch_size
            stop = min(start + self.batch_size, number)
            places = torch.arange(start + self.rank, stop, self.world_size)
            some = self.rows[places if order is None else order(places)]
            generator.manual_seed(seed_of(self.position * self.world_size + self.rank))
            if self.world_size > 1:
                generator.shared = torch.Generator().manual_seed(seed_of(self.position))
            self.position += 1
            yield self.make(some, generator)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
        self._resumed = True
