"""LinRec: Linear Attention Mechanism for Long-term Sequential Recommender Systems.

Liu et al., SIGIR 2023.

Symbols: L columns (the data set's max_length), H heads, d = D / H; Q, K and V (L, d) per head, from
X W_Q + b_Q and so on; q', k' are rows of Q', K'.

    X  = dropout(LayerNorm(E[items] + P))                         (B, L, D)                     (1)
    q' = ELU(q) / |ELU(q)|,  k' = ELU(k) / |ELU(k)|               (d,) per head and position    (2)
    A  = Q' (K'^T V) / sqrt(d)                                    (L, d) per head; K'^T V first (3)
    X  = LayerNorm(X + dropout(A W_O + b_O))                      num_layers times,             (4)
    X  = LayerNorm(X + dropout(GELU(X W1 + b1) W2 + b2))          one after the other           (5)
    score of item k = X[n_u] · E[k]

As in the authors' code there is no mask at all: every position reads the whole row, later items and
padding too. A position of padding holds its position's embedding (``padding_item``: and row 0 of E,
as theirs), so the number of them moves the scores. No dropout inside the attention.

Departures: ``mask_padding=True``, not the authors', leaves padding out of K'^T V; scores then
depend on real items alone. A zero vector stays zero when normalised (NaN in the authors' code).
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.models.layers import encode, init_normal
from sigma.models.transformer import SelfAttention, Transformer
from sigma.ops import Places, Rows, packed, padded, padded_places, places_of, spread, whole_rows


class LinearAttention(SelfAttention):
    """Equations 2 to 4; with ``full_rows`` all rows are L long, as those of a padded batch."""

    def __init__(self, *args: Any, full_rows: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self.full_rows = full_rows

    def grid(self, x: Tensor, rows: Rows) -> Tensor:
        """(T, D) -> (B, L, H, d), zeros behind each row's end."""
        if self.full_rows:
            return self.heads(x).unflatten(0, (-1, rows.longest))
        return self.heads(padded(x, rows, rows.longest))

    def mix(self, queries: Tensor, states: Tensor, rows: Rows, places: Places | None) -> Tensor:
        k = F.normalize(self.grid(F.elu(self.key(states)), rows), dim=-1)  # eq. 2: (B, L, H, d)
        v = self.grid(self.value(states), rows)
        summary = torch.einsum("blhc,blhd->bhcd", k, v)  # eq. 3: K'^T V
        q, scale = F.elu(self.query(queries)), (queries.shape[-1] // self.num_heads) ** -0.5
        if places is not None:
            q = F.normalize(self.heads(q), dim=-1)  # eq. 2: (M, H, d)
            mixed = torch.einsum("mhc,mhcd->mhd", q, spread(summary, rows, places.at))  # eq. 3
            return (mixed * scale).flatten(1)
        q = F.normalize(self.grid(q, rows), dim=-1)  # eq. 2: (B, L, H, d)
        mixed = (torch.einsum("blhc,bhcd->blhd", q, summary) * scale).flatten(2)  # eq. 3
        return mixed.flatten(0, 1) if self.full_rows else packed(mixed, rows, states.shape[0])


class LinRec(Transformer):
    """Packed items (T,) -> states (M, D) at places; arguments as above and in the base."""

    def __init__(
        self,
        num_items: int,
        max_length: int,
        mask_padding: bool = False,
        padding_item: bool | None = None,
        **options: Any,
    ) -> None:
        attention = functools.partial(LinearAttention, full_rows=not mask_padding)
        super().__init__(num_items, max_length, attention, attention_dropout=0.0, **options)
        self.mask_padding = mask_padding
        self.apply(init_normal)
        if padding_item:
            self.draw_padding()

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        if self.mask_padding:
            read = places_of(places, items.shape[0])
            return encode(self.layers, self.embedding(items, rows), rows, read)
        width = rows.longest
        states = self.padded_embedding(padded(items, rows, width))  # eq. 1: (B, L, D)
        grid = whole_rows(states.shape[0], width, items.device)
        read = padded_places(rows, places, width)
        return encode(self.layers, states.flatten(0, 1), grid, read)
