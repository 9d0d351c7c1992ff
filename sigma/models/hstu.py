"""HSTU: Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers.

Zhai et al., ICML 2024; the sequential recommender of their section 4.1.1, as their public code has
it (facebookresearch/generative-recommenders, ``research/``): states, scores and gradients equal
those of its files to rounding.

Symbols: N the largest L; u_t the time of position t, w_t that of the item after it, which at a
row's end is the item to predict; a and b learned biases, by distance and by bucket of time.

    X = dropout(sqrt(D) E[items] + P)                             (T, D)                        (1)
    U, V, Q, K = SiLU(norm(X) W)                                  num_layers times,             (2)
    A_t = 1/N Σ_{s <= t} SiLU(q_t · k_s + a_{t-s} + b_g) v_s      one after the other;          (3)
    g = floor(log(max(|w_t - u_s|, 1)) / 0.301)                   ``sigma.ops.pointwise``
    X = X + dropout(norm(A) ⊙ U) W_O + b_O                                                      (4)
    score of item k = X[n_u] · E[k]                                                             (5)

``norm`` has no parameters. The heads of a layer share a and b.

The item to predict gives away its time: at a position t their bias reads w_t, in training and in
evaluation. ``time="target"`` is that, the published setting; other models know no such thing.
``time="history"`` has u_t in place of w_t, so that nothing later than a position's own item is
read; without ``time`` there is no b.

In their recipe equation 5 is a cosine over 0.05 (``normalize`` and ``temperature``). Departures: N
is the data set's max_length, theirs is 11 more; items start N(0, 0.02), theirs are cut at two
deviations.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.arguments import Count, Share
from sigma.models.layers import Dropout, at
from sigma.models.transformer import PositionedItems
from sigma.ops import Places, Rows, places_of, pointwise_attend

BUCKETS = 129  # of time: thirty years are in the 69th by seconds, the 115th by microseconds


class TransductionUnit(nn.Module):
    """Equations 2 to 4, (T, D) -> (T, D), or (M, D) at places."""

    def __init__(
        self, size: int, num_heads: Count, longest: int, *, dropout: float, timed: bool
    ) -> None:
        super().__init__()
        if num_heads < 1 or size % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide hidden_size={size}.")
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(size, eps=1e-6, elementwise_affine=False)
        self.maps = nn.Linear(size, 4 * size, bias=False)
        self.out = nn.Linear(size, size)
        self.dropout = Dropout(dropout)
        self.distance_bias = nn.Parameter(torch.empty(longest))
        self.time_bias = nn.Parameter(torch.empty(BUCKETS)) if timed else None
        for weight in (self.maps.weight, self.distance_bias, self.time_bias):
            if weight is not None:
                nn.init.normal_(weight, std=0.02)
        nn.init.xavier_uniform_(self.out.weight)

    def forward(
        self,
        states: Tensor,
        rows: Rows,
        times: tuple[Tensor, Tensor] | None,
        places: Places | None = None,
    ) -> Tensor:
        """Times are those of queries and keys, (T,) each."""
        u, *parts = F.silu(self.maps(self.norm(states))).chunk(4, -1)  # eq. 2
        v, q, k = (x.unflatten(-1, (self.num_heads, -1)) for x in parts)  # (T, H, d)
        near, scale = self.distance_bias, 1 / len(self.distance_bias)
        mixed = pointwise_attend(q, k, v, rows, near, scale, self.time_bias, *(times or ()))
        mixed = self.norm(at(mixed.flatten(1), places)) * at(u, places)
        return at(states, places) + self.out(self.dropout(mixed))  # eq. 4


class HSTU(PositionedItems):
    """Packed items (T,) -> states (M, D) at places.

    Args:
        time: what the biases of time read: ``history``, ``target``, or None for no such biases.
    """

    causal = True

    def __init__(
        self,
        num_items: int,
        max_length: Count,
        hidden_size: Count = 50,
        num_layers: Count = 2,
        num_heads: Count = 1,
        dropout: Share = 0.2,
        time: Literal["history", "target"] | None = None,
        **options: Any,
    ) -> None:
        options |= {"hidden_size": hidden_size, "dropout": dropout}
        super().__init__(num_items, max_length, **options)
        nn.init.xavier_normal_(self.positions.table.weight)
        self.time = time
        sizes = hidden_size, num_heads, max_length
        self.layers = nn.ModuleList(
            TransductionUnit(*sizes, dropout=dropout, timed=time is not None)
            for _ in range(num_layers)
        )

    def times(self, rows: Rows) -> tuple[Tensor, Tensor] | None:
        """Of queries and keys."""
        if self.time is None:
            return None
        queries = rows.next_times if self.time == "target" else rows.times
        if queries is None or rows.times is None:
            raise ValueError(f"time={self.time} needs rows that carry those times.")
        return queries, rows.times

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        read = places_of(places, items.shape[0])
        states = self.scaled_embedding(items, rows)  # eq. 1
        *inner, last = self.layers
        times = self.times(rows)
        for layer in inner:
            states = layer(states, rows, times)
        return last(states, rows, times, read)
