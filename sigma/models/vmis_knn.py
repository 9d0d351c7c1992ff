"""VMIS-kNN: sessions that share items with the history recommend their other items.

Kersbergen et al., SIGMOD 2022 (Serenade), an index for VS-kNN (Ludewig & Jannach, UMUAI 2018).

Symbols: H sessions, n items of the history, each item i of it at its last place p_i (1 oldest, n
last), h_i sessions with item i, m ``sessions``, k ``neighbours``, S a session's set of items.

    candidates      = the m most recent sessions that share an item with the history            (1)
    similarity r_S  = sum over i in S and history of p_i / n                                    (2)
    neighbours      = the k candidates of largest r_S, the more recent first among equals       (3)
    match weight    = max(0, 1 - 0.1 x_S), x_S = n + 1 - max p_i of the shared items            (4)
    score of item i = log(|H| / h_i) * sum over neighbours S with i in S of (match weight) r_S  (5)

and 0 for items of the history. ``remind=True`` is the authors': 0 for its last item alone.

Choices and departures:
- A session is the training history of a user, its last L - 1 items (L ``max_length``), each once.
- The user's own session is among them and would come first, yet has nothing to recommend but the
  history itself. So candidates whose items the history all holds are no neighbours; under
  leave-one-out the own session always is one of these. (With ``split=global_time`` part of it may
  stay, for users with more than L items.)
- Sequences have no common clock: the more recent session is that of the later user, in the order
  in which the file first names them.
- The authors' code lets the match weight fall below zero, to step 100, takes |H| as the number of
  interactions, and divides by the history's distinct items instead of n, which moves no rank.
"""

import torch
from torch import Tensor

from sigma.arguments import Count
from sigma.models.counted import Counted, distinct, last_places, members, offsets_of, rank_in_group

ONE = 1 << 32  # counts shared items in the upper half of a number, the sum of p_i in the lower
REACH = 10  # steps from the end of the history at which the match weight reaches 0


class VMISKNN(Counted):
    """Packed items (T,) -> states (M, max_length), the history up to each place.

    Args:
        max_length: L, the number of last items of a history that are read.
        sessions: m.
        neighbours: k.
        remind: whether items of the history, its last one excepted, may be recommended.
    """

    offsets: Tensor  # (|H| + 1,) session s has items[offsets[s]] to before items[offsets[s + 1]]
    items: Tensor
    index_offsets: Tensor  # (K + 2,) of item i's m most recent sessions, in ``index``
    index: Tensor
    holders: Tensor  # (K + 1,) h_i

    def __init__(
        self,
        num_items: int,
        max_length: Count,
        sessions: int = 500,
        neighbours: Count = 100,
        remind: bool = False,
        name: str = "",
    ) -> None:
        buffers = ("offsets", "items", "index_offsets", "index", "holders")
        super().__init__(num_items, max_length, name, *buffers)
        if max_length < 2:
            raise ValueError(
                f"max_length={max_length} must be at least 2: a session is one item shorter."
            )
        if sessions < 1 or neighbours < 1:
            raise ValueError(f"sessions={sessions}, neighbours={neighbours} must be at least 1.")
        self.sessions = sessions
        self.neighbours = neighbours
        self.remind = remind

    def count(self, items: Tensor, offsets: Tensor) -> None:
        size = self.num_items + 1
        stocked = offsets.diff() > 0
        starts, ends = offsets[:-1][stocked], offsets[1:][stocked]
        spans = torch.stack([torch.maximum(starts, ends - (self.width - 1)), ends], dim=1)
        session, place = members(spans.flatten(), 2 * torch.arange(len(ends), device=ends.device))
        pairs = (session * size + items[place].long()).unique()
        session, item = pairs // size, pairs % size
        by_item = item.argsort(stable=True)  # and of one item by session
        holders = torch.bincount(item, minlength=size)
        owner = item[by_item]
        recent = rank_in_group(owner, size) >= holders[owner] - self.sessions
        self.store(
            offsets=offsets_of(session, len(ends)),
            items=item,
            index_offsets=offsets_of(owner[recent], size),
            index=session[by_item][recent],
            holders=holders,
            interactions=torch.tensor(len(items)),
        )

    def cells(self) -> int:
        longest = int(self.index_offsets.diff().max())
        return max(super().cells(), len(self.offsets), self.width * longest)

    def nearest(self, states: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, session and n r_S of every neighbour, row by row; ``table`` of ``last_places``."""
        total = len(self.offsets) - 1
        row, item, place = distinct(states, table)
        position = place - (states == 0).sum(1)[row]
        which, at = members(self.index_offsets, item)
        # A session among a row's m most recent is among those of each item it shares: in the index.
        tally = torch.zeros(len(states) * total, dtype=torch.int64, device=states.device)
        tally.index_add_(0, row[which] * total + self.index[at], position[which] + ONE)
        key = tally.nonzero().squeeze(1)
        row, session, tally = key // total, key % total, tally[key]
        candidates = torch.bincount(row, minlength=len(states))
        recent = rank_in_group(row, len(states)) >= candidates[row] - self.sessions  # eq. 1
        offers = tally // ONE < self.offsets.diff()[session]
        row, session, tally = (x[recent & offers] for x in (row, session, tally))
        similarity = tally % ONE  # eq. 2, times n
        falling = (similarity * total + session).argsort(descending=True)
        falling = falling[row[falling].argsort(stable=True)]
        near = falling[rank_in_group(row, len(states)) < self.neighbours]  # eq. 3
        return row[near], session[near], similarity[near]

    def scores(self, states: Tensor) -> Tensor:
        size = self.num_items + 1
        table = last_places(states, self.num_items)
        row, session, similarity = self.nearest(states, table)
        which, at = members(self.offsets, session)
        cell = row[which] * size + self.items[at]
        latest = torch.zeros_like(session).scatter_reduce_(0, which, table.flatten()[cell], "amax")
        # Tenths of match weights times sums of places: whole numbers, so equal scores stay equal.
        weight = (REACH - 1 - (self.width - latest)).clamp(min=0) * similarity  # eq. 4
        evidence = torch.zeros_like(table).flatten().index_add_(0, cell, weight[which])
        idf = ((len(self.offsets) - 1) / self.holders.clamp(min=1).double()).log()
        scale = REACH * (states > 0).sum(1, keepdim=True)
        scores = evidence.view_as(table) * idf / scale  # eq. 5
        hidden = table == self.width if self.remind else table > 0
        return scores.masked_fill(hidden, 0)[:, 1:].float()
