"""Negatives: items drawn at random to stand beside a target, and how probable each was.

Symbols: M targets, n negatives each, K items, w_i weight of item i, T the sum of all weights.

    Q(i | not t) = w_i / (T - w_t) for i != t, and 0 for the target itself
    uniform:     w_i = 1
    popularity:  w_i = (training count of item i) ** power

Every target's n are drawn independently, with replacement, in one vectorised draw without
rejection. Uniform: a number from 1 … K - 1, where one at or above the target stands for the next
item. Popularity: a point on a line of length T from which the target's stretch is cut out; the
stretch it falls into names the item. The stretches are whole numbers, so nothing is left to
rounding, and casting the module to half precision does not touch them.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from sigma.arguments import Count, Distribution, checked

Power = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# Of all stretches together: double precision holds every point on it, and 1e-6 of it (a rare item)
# is still a billion points, so that rounding to whole numbers does not show.
LINE = 2**50


class Negatives(nn.Module):
    """Targets (M,) -> item ids (M, n) from 1, never a row's own target.

    Args:
        item_counts: (K,) int64, how often items 1 … K occur in training.
        distribution: ``uniform``, or ``popularity``, which never draws an item of count 0.
        power: exponent of the counts under ``popularity``; 0.75 is word2vec's.

    Raises:
        ValueError: an argument is out of its range, or there is nothing to draw from.
    """

    ends: Tensor
    weights: Tensor

    @checked
    def __init__(
        self,
        item_counts: Tensor,
        negatives: Count,
        distribution: Distribution = "uniform",
        power: Power = 1.0,
    ) -> None:
        super().__init__()
        if len(item_counts) < 2:
            raise ValueError(f"item_counts has {len(item_counts)} item: a target has no negatives.")
        self.num_items = len(item_counts)
        self.number = negatives
        self.distribution = distribution
        if distribution == "popularity":
            seen = item_counts > 0
            if seen.sum() < 2:
                raise ValueError(
                    "distribution=popularity needs two items that occur in training; use uniform."
                )
            # Divided by the largest first, so that no power overflows.
            shares = (item_counts.double() / item_counts.max()) ** power * seen
            weights = (shares / shares.sum() * LINE).round().long().clamp(min=1) * seen
            # Made from the data, so not part of a checkpoint.
            self.register_buffer("weights", weights, persistent=False)
            self.register_buffer("ends", weights.cumsum(0), persistent=False)

    def forward(self, targets: Tensor) -> Tensor:
        """Draw item ids (M, n), on the device of the targets (M,)."""
        shape, device = (len(targets), self.number), targets.device
        if self.distribution == "uniform":
            items = torch.randint(1, self.num_items, shape, device=device)
            return items + (items >= targets[:, None])
        width, end = self.weights[targets - 1, None], self.ends[targets - 1, None]
        rest = self.ends[-1] - width
        # Below ``rest`` for certain: the largest draw, 1 - 2^-53, times it does not round up to it.
        points = (torch.rand(shape, dtype=torch.float64, device=device) * rest).long()
        points = points + width * (points >= end - width)
        return torch.searchsorted(self.ends, points, right=True) + 1

    def log_probability(self, items: Tensor, targets: Tensor) -> Tensor:
        """log Q(item | not target) of one draw, (M, n) float64; -inf for what is never drawn."""
        if self.distribution == "uniform":
            log_q = torch.full_like(items, -math.log(self.num_items - 1), dtype=torch.float64)
        else:
            rest = self.ends[-1] - self.weights[targets - 1, None]
            log_q = self.weights[items - 1].double().log() - rest.double().log()
        return log_q.masked_fill(items == targets[:, None], -math.inf)
