"""Objectives: which rows an epoch holds, what is predicted from each, and how evaluation reads.

Of a model it knows the class attributes of ``sigma.models.base.Model`` alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sigma.arguments import Count, Share, checked
from sigma.datamodules.batches import Batch, FlatSequences
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.spans import Spans
from sigma.datamodules.splits import Split
from sigma.errors import UserError
from sigma.ops.rows import Rows

if TYPE_CHECKING:
    from sigma.models.base import Model

log = logging.getLogger(__name__)


def windows(starts: np.ndarray, stops: np.ndarray, width: int) -> np.ndarray:
    """Cut spans into windows (rows, 2) of at most ``width``, counted from the end of each.

    Every position of every span, ``starts`` (spans,) to below ``stops``, lies in exactly one
    window; only a span's first may be shorter.
    """
    counts = -(-(stops - starts).clip(min=0) // width)
    span = np.repeat(np.arange(len(starts)), counts)
    # 0 for the last window of a span, then 1, 2, … towards its start.
    back = counts[span] - 1 - (np.arange(len(span)) - (counts.cumsum() - counts)[span])
    stop = stops[span] - back * width
    return np.stack([np.maximum(stop - width, starts[span]), stop], axis=1).astype(np.int64)


class Objective:
    """Base: rows are target positions, evaluation batches stay as they are."""

    masks = False  # it asks by mask tokens
    counts = False  # it trains nothing

    def setup(self, data: Sequences, split: Split, max_length: int) -> Tensor | Spans:
        """The rows of one training epoch, along the first dimension."""
        return split.samples

    def batch(self, flat: FlatSequences, rows: Tensor, generator: torch.Generator) -> Batch:
        """A training batch of rows; draws come from ``generator`` alone."""
        return flat.batch(rows)

    def evaluation(self, batch: Batch, num_items: int) -> Batch:
        """The batch as this objective's models predict the next item from it."""
        return batch

    def check(self, model: Model) -> None:
        """Refuse a model that this objective cannot train.

        Raises:
            UserError: says why, and what to use instead.
        """
        reason: str | None
        if model.counted and not self.counts:
            reason = f"{model.name} is counted, not trained; use objective=counted, its default."
        elif model.mask_token is not None and not self.masks:
            reason = f"{model.name} predicts masked items; use objective=cloze, its default."
        else:
            reason = self.refusal(model)
        if reason:
            raise UserError(reason)

    def refusal(self, model: Model) -> str | None:
        """Why this objective alone cannot train a model."""
        return None


class NextItem(Objective):
    """The paper's objective: every item of a history is predicted once from all items before it."""


class Twins(NextItem):
    """``NextItem``, each sample with another training sample of the same target.

    New ones each time; a sample whose target occurs once is its twin itself. For contrastive terms
    (FEARec; the "semantic augmentation" of DuoRec, Qiu et al., WSDM 2022).
    """

    def setup(self, data: Sequences, split: Split, max_length: int) -> Tensor:
        self._positions = torch.from_numpy(split.train)
        self._targets = torch.from_numpy(data.items[split.train]).long()
        self._order = self._targets.argsort(stable=True)  # samples of one target side by side
        self._place = self._order.argsort()  # of each sample in that order
        self._counts = torch.bincount(self._targets)
        self._first = self._counts.cumsum(0) - self._counts
        return torch.arange(len(self._targets))

    def twins(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Another sample (M,) with the target of each sample (M,), uniform among the others."""
        targets = self._targets[rows]
        others = self._counts[targets] - 1
        share = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        place = self._first[targets] + (share * others).long()
        # From the sample itself on, an index stands for the next.
        return self._order[place + ((place >= self._place[rows]) & (others > 0))]

    def batch(self, flat: FlatSequences, rows: Tensor, generator: torch.Generator) -> Batch:
        other = flat.batch(self._positions[self.twins(rows, generator)])
        return flat.batch(self._positions[rows])._replace(twins=(other.items, other.rows))


class AllPositions(Objective):
    """One pass over a history predicts the successor of each of its items (SASRec's training).

    Histories longer than L are cut into windows from their end, so an epoch predicts the very
    targets of ``NextItem``, each once, at a fraction of its cost; a target early in a window that
    is not a history's first sees less of what came before it. Only for causal models: another one
    would see the items it is to predict. A batch's size counts rows (windows) here.

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

    def batch(self, flat: FlatSequences, rows: Tensor, generator: torch.Generator) -> Batch:
        first, stop = rows.T
        targets = flat.gather(first + 1, stop - first)
        places = torch.arange(len(targets))
        return flat.window(rows)._replace(places=places, targets=targets, num_targets=len(targets))

    def refusal(self, model: Model) -> str | None:
        if model.leaks_on_purpose:
            log.warning(
                "%s is trained at every position although it sees the items it must predict "
                "there; its training loss means little.",
                model.name,
            )
        elif not model.causal:
            return (
                f"objective=all_positions predicts every position in one pass, and {model.name} "
                "is not causal: it would see the items it must predict. Use objective=next_item."
            )
        return None


class Cloze(Objective):
    """Masked items are predicted from both sides (BERT4Rec, Sun et al., CIKM 2019).

    A row is a window of at most L + 1 training items. Per batch, with probability
    ``fine_tune_ratio`` only the last item of each row is masked, as in evaluation; otherwise each
    item is, with probability ``mask_ratio``, and a random one in rows without any. The mask is id
    K + 1. Evaluation appends one mask after the last of at most L items and reads there: in the
    place that a window's last item has in training, so every position is trained.

    Departure from RecBole: rows are all of a training history, not its prefixes without the
    target, by which RecBole never masks a user's last training item.

    Args:
        mask_ratio: share of items masked.
        fine_tune_ratio: share of batches in which the last item alone is.
        copies: times an epoch visits each window, with other masks (``dupe_factor`` of BERT).
        recbole_masks: only what RecBole scores is predicted: of a row the last int(mask_ratio L)
            masks, and not its first item, though all are hidden; none is forced on a row.
    """

    masks = True

    @checked
    def __init__(
        self,
        mask_ratio: Annotated[float, Field(gt=0, le=1)] = 0.2,
        fine_tune_ratio: Share = 0.5,
        copies: Count = 1,
        recbole_masks: bool | None = None,
    ) -> None:
        self.mask_ratio, self.fine_tune_ratio, self.copies = mask_ratio, fine_tune_ratio, copies
        self.recbole_masks = recbole_masks

    def setup(self, data: Sequences, split: Split, max_length: int) -> Tensor:
        self._mask_token = data.num_items + 1
        rows = windows(data.offsets[:-1], split.train_end, max_length + 1)
        return torch.from_numpy(np.tile(rows, (self.copies, 1)))

    def batch(self, flat: FlatSequences, rows: Tensor, generator: torch.Generator) -> Batch:
        batch = flat.window(rows, flat.max_length + 1)
        starts, stops = batch.rows.offsets[:-1], batch.rows.offsets[1:]
        hidden = stops - 1
        # One coin for the step: all processes mask in the same way, each in its rows.
        coin = torch.rand((), generator=getattr(generator, "shared", generator))
        if coin >= self.fine_tune_ratio:
            masked = torch.rand(len(batch.items), generator=generator) < self.mask_ratio
            if not self.recbole_masks:
                spare = (torch.rand(len(rows), generator=generator) * (stops - starts)).long()
                before = F.pad(masked.cumsum(0), (1, 0))
                masked[(starts + spare)[before[stops] == before[starts]]] = True
            hidden = masked.nonzero().squeeze(1)
        places = hidden
        if self.recbole_masks:
            places = hidden[self.scored(hidden, batch.rows, int(self.mask_ratio * flat.max_length))]
        return batch._replace(
            items=batch.items.index_fill(0, hidden, self._mask_token),
            places=places,
            targets=batch.items[places],
            num_targets=len(places),
        )

    def scored(self, hidden: Tensor, rows: Rows, most: int) -> Tensor:
        """Whether RecBole's loss counts a masked place, (n,) of ``hidden``, ascending.

        All of them in a batch of which it would count none, for whose mean it has NaN.
        """
        row = rows.row_of(hidden)
        through = torch.bincount(row, minlength=len(rows.offsets) - 1).cumsum(0)[row]
        later = through - 1 - torch.arange(len(hidden))  # masks behind it in its row
        counts = (hidden > rows.offsets[row]) & (later < most)
        return counts if counts.any() else torch.ones_like(counts)

    def evaluation(self, batch: Batch, num_items: int) -> Batch:
        one_more = torch.arange(len(batch.rows.offsets))
        rows = Rows(batch.rows.offsets + one_more, batch.rows.longest + 1)
        places = rows.offsets[1:] - 1
        items = torch.full((len(batch.items) + len(places),), num_items + 1)
        items[torch.ones_like(items, dtype=torch.bool).index_fill(0, places, False)] = batch.items
        return batch._replace(items=items, rows=rows, places=places)

    def refusal(self, model: Model) -> str | None:
        if model.mask_token is not None:
            return None
        return (
            f"objective=cloze needs a model with a mask token, and {model.name} has none; use "
            "model=bert4rec or objective=next_item."
        )


class Counted(Objective):
    """For models that count the training data once and learn nothing: an epoch of one sample."""

    counts = True

    def setup(self, data: Sequences, split: Split, max_length: int) -> Tensor:
        return split.samples[torch.arange(1)]

    def refusal(self, model: Model) -> str | None:
        if model.counted:
            return None
        return (
            f"objective=counted trains nothing, and {model.name} learns by gradients; use "
            "objective=next_item."
        )
