"""Popularity: every user is shown the items bought most often in training.

    score of item k = n_k, its training interactions, repeats included                          (1)

The state (the last item) is not read.
"""

import torch
from torch import Tensor

from sigma.models.counted import Counted


class Popularity(Counted):
    """Packed items (T,) -> states (M, 1)."""

    counts: Tensor

    def __init__(self, num_items: int, name: str = "") -> None:
        super().__init__(num_items, 1, name, "counts")

    def count(self, items: Tensor, offsets: Tensor) -> None:
        counts = torch.bincount(items.long(), minlength=self.num_items + 1)[1:]
        self.store(counts=counts, interactions=counts.sum())

    def scores(self, states: Tensor) -> Tensor:
        return self.counts.float().expand(states.shape[0], -1)  # eq. 1
