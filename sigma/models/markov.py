"""First-order Markov chain: what followed the last item in training.

Symbols: n_k training interactions with item k, n their sum, c_ij how often j came right after i in
a training history (i itself among them), c_i = sum_j c_ij, alpha >= 0 ``smoothing``.

    score of item j after item i = P(j | i) = (c_ij + alpha n_j / n) / (c_i + alpha)            (1)

For alpha = 0, what follows an item never followed by anything scores 0; else the mean under a
Dirichlet prior that weighs as much as alpha observations (Zhai & Lafferty, SIGIR 2001).
"""

import torch
from torch import Tensor

from sigma.models.counted import Counted, members, offsets_of, owners


class Markov(Counted):
    """Packed items (T,) -> states (M, 1), the last item."""

    counts: Tensor  # (K,) n_k
    offsets: Tensor  # (K + 2,) of item i's successors, of 0 (padding) none
    successors: Tensor  # j of each pair
    transitions: Tensor  # c_ij of each pair

    def __init__(self, num_items: int, smoothing: float = 0.0, name: str = "") -> None:
        super().__init__(num_items, 1, name, "counts", "offsets", "successors", "transitions")
        if not smoothing >= 0:
            raise ValueError(f"smoothing={smoothing} must be at least 0.")
        self.smoothing = smoothing

    def count(self, items: Tensor, offsets: Tensor) -> None:
        items = items.long()
        user = owners(offsets)
        follows = user[1:] == user[:-1]
        pairs = items[:-1][follows] * (self.num_items + 1) + items[1:][follows]
        pairs, transitions = pairs.unique(return_counts=True)
        counts = torch.bincount(items, minlength=self.num_items + 1)[1:]
        self.store(
            counts=counts,
            offsets=offsets_of(pairs // (self.num_items + 1), self.num_items + 1),
            successors=pairs % (self.num_items + 1),
            transitions=transitions,
            interactions=counts.sum(),
        )

    def scores(self, states: Tensor) -> Tensor:
        which, place = members(self.offsets, states[:, 0])
        counts = torch.zeros(len(states), self.num_items, dtype=torch.float64, device=states.device)
        counts[which, self.successors[place] - 1] = self.transitions[place].double()  # c_ij
        total = counts.sum(1, keepdim=True)  # c_i
        if self.smoothing:
            counts = counts + self.smoothing * (self.counts.double() / self.interactions)
        return (counts / (total + self.smoothing).clamp(min=1e-300)).float()  # eq. 1
