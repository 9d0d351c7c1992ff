"""From states to ranks: scores in full precision, some rows at a time, and where targets stand."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.datamodules.batches import Batch
from sigma.losses import full_precision
from sigma.models.base import Model
from sigma.ops.cross_entropy import MIN_ROWS, chunk_rows
from sigma.ops.scores import Logits
from sigma.ranking.metrics import ALL, SAMPLED, UNSEEN, target_ranks
from sigma.ranking.sampled import SampledNegatives

ID_BITS = 40  # of an item, beside its row in one key
SPARE = 16  # best items beyond k, which may be seen


class Ranking(NamedTuple):
    """One ranking of an evaluation batch.

    ``greater`` items score above the target and ``ties`` others equal it, both (B,); ``top`` are
    the ids (B, k) of the best, of equals any, and 0 where there are no more.
    """

    greater: Tensor
    ties: Tensor
    top: Tensor


class Ranks(NamedTuple):
    """Of an evaluation batch (B,): who is asked for what, and every ranking by its name."""

    users: Tensor
    targets: Tensor
    history_lengths: Tensor
    rankings: dict[str, Ranking]


def scores(
    model: Model, states: Tensor, items: Tensor | None = None, logits: Logits | None = None
) -> Tensor:
    """As ``model.logits``, in float32 even under mixed precision: rounded scores tie with others.

    Args:
        states: (M, D).
        items: (M, n) ids from 1; None for all K.
        logits: the model's, where they serve several calls: some make a table first.
    """
    weight = next(model.parameters(), None)
    if weight is not None and torch.is_autocast_enabled(states.device.type):
        states = states.to(weight.dtype)
    with torch.autocast(states.device.type, enabled=False):
        return full_precision((logits or model.logits)(states, items))


def all_scores(model: Model, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunk after chunk of the states (M, D): which they are, and their scores (rows, K).

    Column j scores item j + 1.
    """
    first, rows, logits = 0, MIN_ROWS, model.logits  # rows until the number of items is known
    while first < len(states):
        chunk = slice(first, first + rows)
        some = scores(model, states[chunk], logits=logits)
        yield chunk, some
        first += rows
        rows = chunk_rows(some.shape[1], some.dtype, some.device)


class Seen:
    """The items of each row's history, each once, without the row's target."""

    def __init__(self, batch: Batch) -> None:
        row = torch.arange(len(batch.targets), device=batch.targets.device)
        rows = row.repeat_interleave(batch.history_lengths, output_size=len(batch.history))
        keys = torch.unique((rows << ID_BITS) + batch.history)
        rows, items = keys >> ID_BITS, keys & ((1 << ID_BITS) - 1)
        other = items != batch.targets[rows]
        self.rows, self.items = rows[other], items[other]

    def of(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Row in the chunk, and column of the scores, of every pair (S,)."""
        bounds = self.rows.new_tensor([chunk.start, chunk.stop])
        first, stop = torch.searchsorted(self.rows, bounds).tolist()
        return self.rows[first:stop] - chunk.start, self.items[first:stop] - 1


def first_items(
    some: Tensor,
    k: int,
    candidates: Tensor | None = None,
    hidden: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Ids (B, k) of the highest scores (B, K), of equals the lowest id first, and these scores.

    An id is 0 where a score is -inf or NaN. Fewer than k where fewer are ranked.

    Args:
        candidates: (n,) ids, ascending, of the items to rank; None is all.
        hidden: rows and columns of scores that are not ranked, see ``Seen.of``.
    """
    some = some.nan_to_num(-math.inf, math.inf, -math.inf)
    if hidden is not None:
        some[hidden] = -math.inf
    if candidates is not None:
        some = some[:, candidates - 1]
    k = min(k, some.shape[1])
    values, columns = some.topk(min(k + 1, some.shape[1]))
    cut = (values[:, k - 1] == values[:, -1]).nonzero().squeeze(1)  # there topk takes any
    columns, order = columns[:, :k].sort(1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if len(cut) and k < some.shape[1]:
        rest = some[cut].sort(dim=1, descending=True, stable=True)
        values[cut], columns[cut] = rest.values[:, :k], rest.indices[:, :k]
    items = columns + 1 if candidates is None else candidates[columns]
    return torch.where(values.isneginf(), 0, items), values


def best_items(values: Tensor, columns: Tensor, k: int) -> Tensor:
    """Ids (rows, k) of sorted scores and their columns; 0 where one is -inf, or there is none."""
    items = torch.where(values.isneginf(), 0, columns + 1)[:, :k]
    return F.pad(items, (0, k - items.shape[1]))


def both_best(some: Tensor, rows: Tensor, columns: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids (B, k) of the highest scores (B, K), and of those that are not of a seen pair (S,).

    Both are taken from the first few more than k, where few of a row's first are seen.
    """
    width = min(k + SPARE, some.shape[1])
    values, places = some.topk(width)
    seen = torch.zeros_like(some, dtype=torch.bool)
    seen[rows, columns] = True
    hidden = seen.gather(1, places)
    unseen_values, order = values.masked_fill(hidden, -math.inf).topk(min(k, width))
    unseen_places = places.gather(1, order)
    if width < some.shape[1]:
        lacking = (hidden.sum(1) > SPARE).nonzero().squeeze(1)
        rest = some[lacking].masked_fill(seen[lacking], -math.inf).topk(k)
        unseen_values[lacking], unseen_places[lacking] = rest.values, rest.indices
    return best_items(values, places, k), best_items(unseen_values, unseen_places, k)


def both_rankings(
    some: Tensor, targets: Tensor, rows: Tensor, columns: Tensor, k: int
) -> tuple[Ranking, Ranking]:
    """Among all items, and among those that the rows have not had.

    Args:
        some: (B, K) scores.
        targets: (B,) item ids from 1.
        rows, columns: (S,) of the scores that are left out of the second ranking.
    """
    greater, ties = target_ranks(some, targets)
    best, unseen_best = both_best(some, rows, columns, k)
    target_scores = some.gather(1, targets[:, None] - 1).squeeze(1)[rows]
    seen_scores = some[rows, columns]
    # As target_ranks counts them: a comparison with NaN is false.
    above = torch.zeros_like(greater).index_add_(0, rows, (~(seen_scores <= target_scores)).long())
    equal = torch.zeros_like(ties).index_add_(0, rows, (seen_scores == target_scores).long())
    return Ranking(greater, ties, best), Ranking(greater - above, ties - equal, unseen_best)


def ranks(
    model: Model, batch: Batch, sampled: SampledNegatives | None = None, k: int = 10
) -> Ranks:
    """Where each target stands, among all items and among unseen ones, or among drawn negatives.

    A repeated target is no seen item: it is ranked.

    Args:
        k: best items that each ranking names.
    """
    states = model(batch.items, batch.rows, batch.places)
    rankings: dict[str, Ranking] = {}
    if sampled is not None:
        candidates = torch.cat([batch.targets[:, None], sampled(batch)], 1)
        first = torch.ones_like(batch.targets)
        greater, ties = target_ranks(scores(model, states, candidates), first)
        rankings[SAMPLED] = Ranking(greater, ties, candidates[:, :0])
    else:
        seen = Seen(batch)
        parts = [
            both_rankings(some, batch.targets[chunk], *seen.of(chunk), k)
            for chunk, some in all_scores(model, states)
        ]
        for name, of_chunks in zip((ALL, UNSEEN), zip(*parts, strict=True), strict=True):
            rankings[name] = Ranking(*map(torch.cat, zip(*of_chunks, strict=True)))
    return Ranks(batch.users, batch.targets, batch.history_lengths, rankings)
