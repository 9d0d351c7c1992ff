"""From states to ranks: scores in full precision, some rows at a time, and where targets stand."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sigma.datamodules.batches import Batch
from sigma.losses import full_precision
from sigma.models.base import Model
from sigma.ops.cross_entropy import MIN_ROWS, chunk_rows
from sigma.ranking.metrics import target_ranks
from sigma.ranking.sampled import SampledNegatives


class Ranks(NamedTuple):
    """Of an evaluation batch, each (B,).

    ``greater`` items score above the target and ``ties`` others equal it, among all items or, in
    sampled evaluation, among the negatives.
    """

    users: Tensor
    targets: Tensor
    history_lengths: Tensor
    greater: Tensor
    ties: Tensor


def scores(model: Model, states: Tensor, items: Tensor | None = None) -> Tensor:
    """As ``model.logits``, in float32 even under mixed precision: rounded scores tie with others.

    Args:
        states: (M, D).
        items: (M, n) ids from 1; None for all K.
    """
    weight = next(model.parameters(), None)
    if weight is not None and torch.is_autocast_enabled(states.device.type):
        states = states.to(weight.dtype)
    with torch.autocast(states.device.type, enabled=False):
        return full_precision(model.logits(states, items))


def all_scores(model: Model, batch: Batch, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunk after chunk of the states (M, D): which they are, and their scores (rows, K).

    Column j scores item j + 1; items that the batch leaves out of the ranking hold -inf.
    """
    first, rows = 0, MIN_ROWS  # until the number of items is known
    while first < len(states):
        chunk = slice(first, first + rows)
        some = scores(model, states[chunk])
        if len(batch.seen_rows):
            inside = (batch.seen_rows >= first) & (batch.seen_rows < first + rows)
            seen = batch.seen_rows[inside] - first, batch.seen_items[inside] - 1
            some = some.index_put(seen, some.new_tensor(float("-inf")))
        yield chunk, some
        first += rows
        rows = chunk_rows(some.shape[1], some.dtype, some.device)


def ranks(model: Model, batch: Batch, sampled: SampledNegatives | None = None) -> Ranks:
    """Where each target of a batch stands among all items, or among drawn negatives."""
    states = model(batch.items, batch.rows, batch.places)
    if sampled is not None:
        candidates = torch.cat([batch.targets[:, None], sampled(batch)], 1)
        first = torch.ones_like(batch.targets)
        greater, ties = target_ranks(scores(model, states, candidates), first)
    else:
        parts = [
            target_ranks(some, batch.targets[chunk])
            for chunk, some in all_scores(model, batch, states)
        ]
        greater, ties = (torch.cat(part) for part in zip(*parts, strict=True))
    return Ranks(batch.users, batch.targets, batch.history_lengths, greater, ties)
