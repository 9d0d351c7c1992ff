"""Scores of items as inner products with a table."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.ops.cross_entropy import chunk_rows

SHORTEST = 1e-6  # shorter vectors are not brought to length 1, but to less (Meta's HSTU)


class Logits(Protocol):
    """States (M, D) -> scores (M, K) of items 1 … K, or (M, n) of ``items`` (M, n), ids from 1."""

    def __call__(self, states: Tensor, items: Tensor | None = None) -> Tensor: ...


def tied_scores(
    states: Tensor, weight: Tensor, items: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """Scores by inner product with the item table.

    Args:
        states: (M, D).
        weight: (K, D), the rows of items 1 … K.
        items: (M, n) item ids from 1 to score for each state; None scores all.
        bias: (K,) of items 1 … K.

    Returns:
        (M, K), or (M, n) with ``items``.
    """
    if items is None:
        return F.linear(states, weight, bias)
    if items.shape[1] * states.shape[1] > len(weight):
        # Gathering that many rows of the table costs more than scoring all of it, chunk by chunk.
        rows = chunk_rows(len(weight), states.dtype, states.device)
        return torch.cat(
            [
                F.linear(some, weight, bias).gather(1, ids - 1)
                for some, ids in zip(states.split(rows), items.split(rows), strict=True)
            ]
        )
    # Not a matrix product: it may round one item's score differently from place to place.
    scores = (states[:, None] * F.embedding(items - 1, weight)).sum(-1)
    return scores if bias is None else scores + bias[items - 1]


@dataclass(frozen=True)
class TiedScores:
    """Scores by inner product: states (M, D) -> (M, K), or (M, n) of ``items`` (M, n).

    A loss over a large catalogue reads ``queries`` and the tables, and never asks for all scores.

    Args:
        weight: (K, D), the rows of items 1 … K.
        bias: (K,) of items 1 … K.
        others: (n, D), classes that a softmax over all items has beside them, never ranked.
        scale: of the states.
        unit: states are taken at length 1.
    """

    weight: Tensor
    bias: Tensor | None = None
    others: Tensor | None = None
    scale: float = 1.0
    unit: bool = False

    def shaped(self, temperature: float | None, normalize: bool | None) -> "TiedScores":
        """The same with scores over a temperature, and states and tables at length 1, or not."""
        scale = 1.0 if temperature is None else 1 / temperature
        bias = self.bias if self.bias is None or scale == 1 else self.bias * scale
        if not normalize:
            return replace(self, bias=bias, scale=scale)
        others = None if self.others is None else F.normalize(self.others, eps=SHORTEST)
        return TiedScores(F.normalize(self.weight, eps=SHORTEST), bias, others, scale, unit=True)

    def queries(self, states: Tensor) -> Tensor:
        """The states (M, D) whose inner products with the tables are scores, but for the bias."""
        if self.unit:
            states = F.normalize(states, dim=-1, eps=SHORTEST)
        return states if self.scale == 1 else states * self.scale

    def __call__(self, states: Tensor, items: Tensor | None = None) -> Tensor:
        return tied_scores(self.queries(states), self.weight, items, self.bias)
