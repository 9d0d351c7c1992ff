"""Item-based nearest neighbours: items that the same users have as those of the history.

Sarwar et al., WWW 2001; for rankings of items, Deshpande & Karypis, ACM TOIS 2004.

Symbols: n_i training users who have item i, c_ij who have both i and j, N_i the ``neighbours``
items j != i most similar to i (of those with c_ij > 0), a_i steps since i last occurred in the
history (0 for the last item).

    s_ij            = c_ij / (sqrt(n_i n_j) + shrinkage)       cosine of the users' 0-1 vectors (1)
    score of item j = sum over distinct i of the history with j in N_i of decay^a_i s_ij        (2)

and 0 for items of the history itself, as in Deshpande & Karypis; ``remind=True`` scores those, too.

Departures: both papers have neither shrinkage (0) nor decay (1). A history is its last
``max_length`` items. No lengths are normalised, of users or of the lists N_i (options of Deshpande
& Karypis), nor sums (Sarwar et al. predict ratings). Items that tie with the last of N_i all stay.
"""

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from sigma.arguments import Count
from sigma.models.counted import (
    CELLS,
    Counted,
    distinct,
    last_places,
    members,
    offsets_of,
    owners,
    rank_in_group,
)


class ItemKNN(Counted):
    """Packed items (T,) -> states (M, W), the history up to each place.

    Args:
        max_length: W, the number of last items of a history that are read.
        neighbours: size of N_i, ties apart.
        remind: whether items of the history may be recommended.
    """

    users: Tensor  # (K + 1,) n_i, of item 0 (padding) none
    offsets: Tensor  # (K + 2,) of N_i
    others: Tensor  # j of each neighbour
    shared: Tensor  # c_ij of each neighbour

    def __init__(
        self,
        num_items: int,
        max_length: Count,
        neighbours: Count = 100,
        shrinkage: float = 0.0,
        decay: float = 1.0,
        remind: bool = False,
        name: str = "",
    ) -> None:
        super().__init__(num_items, max_length, name, "users", "offsets", "others", "shared")
        if neighbours < 1:
            raise ValueError(f"neighbours={neighbours} must be at least 1.")
        if not shrinkage >= 0:
            raise ValueError(f"shrinkage={shrinkage} must be at least 0.")
        if not 0 < decay <= 1:
            raise ValueError(f"decay={decay} must be above 0 and at most 1.")
        self.neighbours = neighbours
        self.shrinkage = shrinkage
        self.decay = decay
        self.remind = remind

    def similarity(self, shared: Tensor, users: Tensor, other_users: Tensor) -> Tensor:
        return shared / ((users * other_users).double().sqrt() + self.shrinkage)  # eq. 1

    def count(self, items: Tensor, offsets: Tensor) -> None:
        size = self.num_items + 1
        pairs = (owners(offsets) * size + items.long()).unique()
        user, item = (pairs // size).numpy(), (pairs % size).numpy()
        by_user = csr_array((np.ones_like(item), (user, item)), (len(offsets) - 1, size))
        by_item = by_user.T.tocsr()
        users = torch.from_numpy(np.diff(by_item.indptr)).long()
        parts = []
        step = max(1, CELLS // size)  # a few items at a time, so memory stays bounded
        for first in range(1, size, step):
            counts = by_item[first : first + step] @ by_user  # c_ij
            counts.sort_indices()
            counts = counts.tocoo()
            i, j, shared = (torch.from_numpy(x).long() for x in (*counts.coords, counts.data))
            i += first
            parts.append(self._most_similar(i[i != j], j[i != j], shared[i != j], users))
        i, j, shared = (torch.cat(part) for part in zip(*parts, strict=True))
        self.store(
            users=users,
            offsets=offsets_of(i, size),
            others=j,
            shared=shared,
            interactions=torch.tensor(len(items)),
        )

    def _most_similar(
        self, i: Tensor, j: Tensor, shared: Tensor, users: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the pairs, sorted by i, with j in N_i."""
        similarity = self.similarity(shared, users[i], users[j])
        falling = similarity.argsort(descending=True)
        falling = falling[i[falling].argsort(stable=True)]
        cut = falling[rank_in_group(i, len(users)) == self.neighbours - 1]
        least = similarity.new_zeros(len(users)).index_put_((i[cut],), similarity[cut])
        near = similarity >= least[i]
        return i[near], j[near], shared[near]

    def cells(self) -> int:
        return max(super().cells(), self.width * int(self.offsets.diff().max()))

    def scores(self, states: Tensor) -> Tensor:
        table = last_places(states, self.num_items)
        row, item, place = distinct(states, table)
        weight = torch.pow(self.decay, (self.width - place).double())  # decay^a_i
        which, at = members(self.offsets, item)
        other = self.others[at]
        similarity = self.similarity(self.shared[at], self.users[item][which], self.users[other])
        out = weight.new_zeros(len(states) * (self.num_items + 1))
        cell = row[which] * (self.num_items + 1) + other
        out.index_add_(0, cell, weight[which] * similarity)  # eq. 2
        out = out.view_as(table)
        return (out if self.remind else out.masked_fill(table > 0, 0))[:, 1:].float()
