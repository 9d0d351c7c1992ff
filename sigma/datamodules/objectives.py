"""Objectives: which rows an epoch holds, what is predicted from each, and how evaluation reads.

An objective turns the training part of the histories into rows (``setup``), rows into training
batches (``batch``) and may reshape evaluation batches (``evaluation``). The trainer stays the same.
"""

import logging

import numpy as np
import torch
from torch import Tensor, nn

from sigma.datamodules.batches import Batch, FlatSequences
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.splits import Split
from sigma.errors import UserError

log = logging.getLogger(__name__)


def windows(starts: np.ndarray, stops: np.ndarray, width: int) -> np.ndarray:
    """Cut each span into windows of at most ``width``, counted from its end, (rows, 2) int64.

    Every position of every span lies in exactly one window; only a span's first may be shorter.

    Args:
        starts: (spans,) first position of each.
        stops: (spans,) one past the last; empty spans give no window.
        width: L.
    """
    counts = -(-(stops - starts).clip(min=0) // width)
    span = np.repeat(np.arange(len(starts)), counts)
    # 0 for the last window of a span, then 1, 2, … towards its start.
    back = counts[span] - 1 - (np.arange(len(span)) - (counts.cumsum() - counts)[span])
    stop = stops[span] - back * width
    return np.stack([np.maximum(stop - width, starts[span]), stop], axis=1).astype(np.int64)


# A model made for one objective has a mark, and is refused by the others.
MARKS = {
    "count": "is counted, not trained; use objective=counted, its default.",
    "mask_token": "predicts masked items; use objective=cloze, its default.",
}


class Objective:
    """Base: rows are target positions, evaluation batches stay as they are.

    Attributes:
        mark: what a model must have for this objective, a key of ``MARKS``; None for any model.
        unmarked: what to say of a model without it.
    """

    mark: str | None = None
    unmarked = ""

    def setup(self, data: Sequences, split: Split, max_length: int) -> Tensor:
        """The rows of one training epoch, along the first dimension."""
        return torch.from_numpy(split.train)

    def batch(
        self, flat: FlatSequences, rows: Tensor, trim: bool, generator: torch.Generator
    ) -> Batch:
        """A training batch of some rows; draws come from ``generator`` (on the CPU) alone."""
        return flat.batch(rows, trim)

    def evaluation(self, batch: Batch, num_items: int) -> Batch:
        """How this objective's models are asked for the next item."""
        return batch

    def check(self, model: nn.Module) -> None:
        """Refuse a model that this objective cannot train.

        Raises:
            UserError: says why, and what to use instead.
        """
        for mark, sentence in MARKS.items():
            if mark != self.mark and hasattr(model, mark):
                raise UserError(f"{title(model)} {sentence}")
        if self.mark is not None and not hasattr(model, self.mark):
            raise UserError(self.unmarked.format(model=title(model)))


def title(model: nn.Module) -> str:
    return str(getattr(model, "name", type(model).__name__))


class NextItem(Objective):
    """The paper's objective: every item of a history is predicted once from all items before it."""


class Twins(NextItem):
    """``NextItem``, each sample beside another training sample with the same target.

    The batch holds 2 M rows for M targets: the samples, then their twins, drawn anew each time and
    without a target of their own; a target that occurs once is its own twin. For contrastive terms
    (FEARec; the "semantic augmentation" of DuoRec, Qiu et al., WSDM 2022).
    """

    def setup(self, data: Sequences, split: Split, max_length: int) -> Tensor:
        targets = torch.from_numpy(data.items[split.train]).long()
        self._positions, self._targets = torch.from_numpy(split.train), targets
        # Samples of one target stand side by side in ``_order``, and there in rising order, so
        # these keys rise, too, and tell where a sample stands.
        self._order = targets.argsort(stable=True)
        self._keys = targets[self._order] * len(targets) + self._order
        self._counts = torch.bincount(targets)
        self._first = self._counts.cumsum(0) - self._counts
        return torch.arange(len(targets))

    def twins(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Another sample (M,) with the target of each sample (M,), uniform among the others."""
        targets = self._targets[rows]
        first, others = self._first[targets], self._counts[targets] - 1
        drawn = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        place = first + (drawn * others).long()
        own = torch.searchsorted(self._keys, targets * len(self._targets) + rows)
        # From the sample's own place on, an index stands for the next.
        return self._order[place + ((place >= own) & (others > 0))]

    def batch(
        self, flat: FlatSequences, rows: Tensor, trim: bool, generator: torch.Generator
    ) -> Batch:
        both = self._positions[torch.cat([rows, self.twins(rows, generator)])]
        batch, m = flat.batch(both, trim), len(rows)
        return batch._replace(
            targets=batch.targets[:m],
            target_rows=batch.target_rows[:m],
            target_columns=batch.target_columns[:m],
        )


class AllPositions(Objective):
    """One pass over a history predicts the successor of each of its items (SASRec's training).

    Histories longer than L are cut into windows from their end, so an epoch predicts the very
    targets of ``NextItem``, each once, at a fraction of its cost; a target early in a window that
    is not a history's first sees less of what came before it. Only for causal models: another one
    would see the items it is to predict. ``dataset.batch_size`` counts rows (windows) here.

    Args:
        last_window: only the last window of each history, as in the code of SASRec, RecMamba and
            MambaRec, whose longer context thereby also means more training; default all.
    """

    def __init__(self, last_window: bool | None = None) -> None:
        self.last_window = last_window

    def setup(self, data: Sequences, split: Split, max_length: int) -> Tensor:
        stops = split.train_end - 1  # the last item of the training part is a target only
        rows = windows(data.offsets[:-1], stops, max_length)
        return torch.from_numpy(rows[np.isin(rows[:, 1], stops)] if self.last_window else rows)

    def batch(
        self, flat: FlatSequences, rows: Tensor, trim: bool, generator: torch.Generator
    ) -> Batch:
        rows = rows.to(flat.items.device)
        batch = flat.window(rows, trim)
        real = torch.arange(batch.items.shape[1], device=rows.device) < batch.lengths[:, None]
        at, columns = real.nonzero(as_tuple=True)
        targets = flat.items[rows[at, 0] + columns + 1].long()
        return batch._replace(targets=targets, target_rows=at, target_columns=columns)

    def check(self, model: nn.Module) -> None:
        super().check(model)
        if getattr(model, "leaks_on_purpose", False):
            log.warning(
                "%s is trained at every position although it sees the items it must predict "
                "there; its training loss means little.",
                title(model),
            )
        elif not getattr(model, "causal", False):
            raise UserError(
                f"objective=all_positions predicts every position in one pass, and {title(model)} "
                "is not causal: it would see the items it must predict. Use objective=next_item."
            )


class Cloze(Objective):
    """Masked items are predicted from both sides (BERT4Rec, Sun et al., CIKM 2019).

    A row is a window of at most L + 1 training items. Per batch, with probability
    ``fine_tune_ratio`` only the last item of each row is masked, as in evaluation; otherwise each
    item is, with probability ``mask_ratio``, and at random one where none was drawn. The mask is id
    K + 1. Evaluation appends one mask after the last of at most L items and reads there: in the
    place that a window's last item has in training, so every position is trained.

    Departure from RecBole: rows are whole training histories, not their prefixes without the
    target, by which RecBole never shows a user's last training item.

    Args:
        mask_ratio: share of items masked.
        fine_tune_ratio: share of batches in which the last item alone is.
        copies: times an epoch visits each window, with other masks (``dupe_factor`` of BERT).
    """

    mark = "mask_token"
    unmarked = (
        "objective=cloze needs a model with a mask token, and {model} has none; use "
        "model=bert4rec or objective=next_item."
    )

    def __init__(
        self, mask_ratio: float = 0.2, fine_tune_ratio: float = 0.5, copies: int = 1
    ) -> None:
        self.mask_ratio = mask_ratio
        self.fine_tune_ratio = fine_tune_ratio
        self.copies = copies

    def setup(self, data: Sequences, split: Split, max_length: int) -> Tensor:
        self._mask_token = data.num_items + 1
        rows = windows(data.offsets[:-1], split.train_end, max_length + 1)
        return torch.from_numpy(np.tile(rows, (self.copies, 1)))

    def batch(
        self, flat: FlatSequences, rows: Tensor, trim: bool, generator: torch.Generator
    ) -> Batch:
        batch = flat.window(rows, trim)
        lengths = rows[:, 1] - rows[:, 0]
        columns = torch.arange(batch.items.shape[1])
        # One coin for the step: all processes mask alike, each its own rows.
        coin = torch.rand((), generator=getattr(generator, "shared", generator))
        if coin < self.fine_tune_ratio:
            masked = columns == lengths[:, None] - 1
        else:
            drawn = torch.rand(batch.items.shape, generator=generator)
            masked = (drawn < self.mask_ratio) & (columns < lengths[:, None])
            spare = (torch.rand(len(lengths), generator=generator) * lengths).long()
            masked |= ~masked.any(1, keepdim=True) & (columns == spare[:, None])
        masked = masked.to(batch.items.device)
        at, where = masked.nonzero(as_tuple=True)
        return batch._replace(
            items=batch.items.masked_fill(masked, self._mask_token),
            targets=batch.items[at, where],
            target_rows=at,
            target_columns=where,
        )

    def evaluation(self, batch: Batch, num_items: int) -> Batch:
        items = torch.nn.functional.pad(batch.items, (0, 1))
        items = items.scatter(1, batch.lengths[:, None], num_items + 1)
        return batch._replace(
            items=items, lengths=batch.lengths + 1, target_columns=batch.target_columns + 1
        )


class Counted(Objective):
    """For models that count the training data once and learn nothing: an epoch of one sample."""

    mark = "count"
    unmarked = (
        "objective=counted trains nothing, and {model} learns by gradients; use "
        "objective=next_item."
    )

    def setup(self, data: Sequences, split: Split, max_length: int) -> Tensor:
        return torch.from_numpy(split.train[:1])
