"""Sampled evaluation: the target is ranked among drawn negatives instead of among all items.

The protocol of SASRec (Kang & McAuley, ICDM 2018) and of many after it. Its numbers are far higher
than those of full ranking and may even order models differently (Krichene & Rendle, KDD 2020), so
its metrics are named ``sampled_hr@10`` … wherever they appear.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from sigma.arguments import Count, Distribution, checked
from sigma.datamodules.batches import Batch
from sigma.errors import UserError

MAX_ROUNDS = 1000


def mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014): int64 -> int64, as good as random."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor  # the shift keeps no sign
    return x


class SampledNegatives(nn.Module):
    """Draws each evaluation sample's negatives; the same for every model, epoch and batch size.

    With replacement, never the target and never an item of the history, as in SASRec's evaluation.
    A draw is a function of the seed, the user and the length of the history alone.

    Args:
        item_counts: (K,) training counts of items 1 … K.
        number: negatives per sample.
        distribution: ``uniform``, or ``popularity`` (in proportion to the training count).

    Raises:
        ValueError: an argument is out of its range, or there is nothing to draw from.
    """

    @checked
    def __init__(
        self,
        item_counts: Tensor,
        number: Count = 1000,
        distribution: Distribution = "uniform",
        seed: Annotated[int, Field(ge=0, lt=2**31)] = 0,
    ) -> None:
        super().__init__()
        self.number = number
        self.seed = seed
        weights = item_counts if distribution == "popularity" else torch.ones_like(item_counts)
        if not weights.any():
            raise ValueError("there are no training interactions to draw negatives by popularity")
        # Whole numbers: casting the module to half precision does not touch them.
        self.register_buffer("cumulative", weights.long().cumsum(0), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Item ids (B, number) from 1.

        Raises:
            UserError: a sample leaves next to nothing to draw.
        """
        cumulative = self.get_buffer("cumulative")
        key = mix(mix(batch.users + (self.seed << 32)) + batch.history_lengths)
        counter = torch.arange(self.number, device=key.device)
        num_items = len(cumulative)
        row = torch.arange(len(key), device=key.device)
        rows = torch.cat([row, row.repeat_interleave(batch.history_lengths)])
        excluded = rows * (num_items + 1) + torch.cat([batch.targets, batch.history])
        excluded = excluded.sort().values
        items = torch.zeros(len(key), self.number, dtype=torch.int64, device=key.device)
        redraw = torch.ones_like(items, dtype=torch.bool)
        for attempt in range(MAX_ROUNDS):
            at, column = redraw.nonzero(as_tuple=True)
            if not len(at):
                return items
            bits = mix(key[at] + mix(counter[column] + (attempt << 32)))
            # 62 bits, so that the remainder favours no item by more than 1e-9.
            point = (bits & ((1 << 62) - 1)) % cumulative[-1]
            candidates = torch.searchsorted(cumulative, point, right=True) + 1
            items[at, column] = candidates
            pair = at * (num_items + 1) + candidates
            nearest = torch.searchsorted(excluded, pair).clamp(max=len(excluded) - 1)
            redraw[at, column] = excluded[nearest] == pair
        raise UserError(
            "Sampled evaluation found too few items to draw that a user has not seen (by "
            "popularity, next to none may be left); use evaluation.sampled.distribution=uniform "
            "or evaluation=full."
        )
