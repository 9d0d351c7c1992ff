"""Popularity: every user is shown the items bought most often in training.

Symbols: K items, n_k training interactions with item k, repeats included.

    score of item k = n_k

The state (the last item) is not read.
"""

import torch
from torch import Tensor

from sigma.models.counted import Counted


class Popularity(Counted):
    """Packed items (T,) -> states (M, 1).

    Args:
        num_items: K.
        name: what tables call the model.
    """

    counts: Tensor

    def __init__(self, num_items: int, name: str = "popularity") -> None:
        super().__init__(num_items, 1, name)
        self.keep(counts=torch.zeros(num_items, dtype=torch.int64))

    def count(self, items: Tensor, offsets: Tensor) -> None:
        """See ``Model.count``."""
        counts = torch.bincount(items.long(), minlength=self.num_items + 1)[1:]
        self.keep(counts=counts, interactions=counts.sum())

    def scores(self, states: Tensor) -> Tensor:
        """States (R, 1) -> scores (R, K)."""
        return self.counts.float().expand(len(states), -1)
