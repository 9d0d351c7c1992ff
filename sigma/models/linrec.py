"""LinRec: Linear Attention Mechanism for Long-term Sequential Recommender Systems.

Liu et al., SIGIR 2023.

Symbols: B rows, L columns, padding included (the data set's max_length), D hidden size, H heads,
d = D / H, K items, P learned positions; Q, K and V (L, d) per head, from X W_Q + b_Q and so on; q',
k' are rows of Q', K'.

    X  = dropout(LayerNorm(E[items] + P))                         (B, L, D)
    q' = ELU(q) / |ELU(q)|,  k' = ELU(k) / |ELU(k)|               (d,) per head and position
    A  = Q' (K'^T V) / sqrt(d)                                    (L, d) per head; K'^T V first
    X  = LayerNorm(X + dropout(A W_O + b_O))                      num_layers times,
    X  = LayerNorm(X + dropout(GELU(X W1 + b1) W2 + b2))          one after the other
    score of item k = X[n_u] · E[k]

K'^T V is (d, d), so that a head costs L d^2 where softmax attention costs L^2 d, and no (L, L)
matrix is kept.

As in the authors' code there is no mask at all: every position reads the whole row, later items and
padding too. A position of padding holds its position's embedding, so the number of them moves the
scores. No dropout inside the attention.

Departures: ``mask_padding=True``, not the authors', leaves padding out of K'^T V; scores then
depend on real items alone. A zero vector stays zero when normalised
(NaN in the authors' code). The item row of padding is 0, where RecBole's stays at its random draw.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.models.layers import init_normal
from sigma.models.transformer import Block, FeedForward, PositionedItems, SelfAttention, encoded
from sigma.ops import Places, Rows, packed, padded, padded_places, places_of, spread, whole_rows


class LinearAttention(SelfAttention):
    """LayerNorm(X + dropout(A W_O + b_O)), (T, D) -> (T, D), or (M, D) at places.

    Args:
        size: D.
        num_heads: H.
        dropout: of the output.
        whole: all rows are L long, as the cells of a padded batch are.
    """

    def __init__(self, size: int, num_heads: int, dropout: float, whole: bool) -> None:
        super().__init__(size, num_heads, dropout)
        self.whole = whole

    def grid(self, x: Tensor, rows: Rows) -> Tensor:
        """(T, D) -> (B, L, H, d), zeros behind each row's end."""
        if self.whole:
            return self.heads(x).unflatten(0, (-1, rows.longest))
        return self.heads(padded(x, rows, rows.longest))

    def mix(self, queries: Tensor, states: Tensor, rows: Rows, places: Places | None) -> Tensor:
        k, v = self.grid(F.elu(self.key(states)), rows), self.grid(self.value(states), rows)
        summary = torch.einsum("blhc,blhd->bhcd", F.normalize(k, dim=-1), v)  # K'^T V
        q, scale = F.elu(self.query(queries)), (queries.shape[-1] // self.num_heads) ** -0.5
        if places is not None:
            q = F.normalize(self.heads(q), dim=-1)
            mixed = torch.einsum("mhc,mhcd->mhd", q, spread(summary, rows, places.at))
            return (mixed * scale).flatten(1)
        q = F.normalize(self.grid(q, rows), dim=-1)
        mixed = (torch.einsum("blhc,bhcd->blhd", q, summary) * scale).flatten(2)
        return mixed.flatten(0, 1) if self.whole else packed(mixed, rows, states.shape[0])


class LinRec(PositionedItems):
    """Packed items (T,) -> states (M, D) at places.

    Args:
        num_items: K.
        max_length: largest L.
        hidden_size: D.
        num_layers: stacked layers.
        num_heads: H, divides D.
        inner_size: width of the feed-forward layers.
        dropout: of embeddings and layer outputs.
        activation: ``gelu`` or ``relu``.
        mask_padding: leave padding out of K'^T V.
        name: what tables call the model.

    Raises:
        UserError: H does not divide D, or unknown activation.
    """

    def __init__(
        self,
        num_items: int,
        max_length: int,
        hidden_size: int = 64,
        num_layers: int = 2,
        num_heads: int = 8,
        inner_size: int = 256,
        dropout: float = 0.3,
        activation: str = "gelu",
        mask_padding: bool = False,
        name: str = "linrec",
    ) -> None:
        super().__init__(num_items, max_length, hidden_size, dropout, name)
        self.mask_padding = mask_padding
        self.layers = nn.ModuleList(
            Block(
                LinearAttention(hidden_size, num_heads, dropout, whole=not mask_padding),
                FeedForward(hidden_size, inner_size, dropout, activation),
            )
            for _ in range(num_layers)
        )
        self.apply(init_normal)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        if self.mask_padding:
            at = places_of(places, items.shape[0])
            return encoded(self.layers, self.embedded(items, rows), rows, at)
        width = rows.longest
        states = self.embedded_padded(padded(items, rows, width))
        grid = whole_rows(states.shape[0], width, items.device)
        at = padded_places(rows, places, width)
        return encoded(self.layers, states.flatten(0, 1), grid, at)
