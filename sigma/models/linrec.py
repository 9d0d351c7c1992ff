"""LinRec: Linear Attention Mechanism for Long-term Sequential Recommender Systems.

Liu et al., SIGIR 2023.

Symbols: B rows, L positions, D hidden size, H heads, d = D / H, K items, P learned positions; Q, K
and V (L, d) per head, from X W_Q + b_Q and so on; q', k' are rows of Q', K'.

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
scores, and rows are always padded to ``max_length``. No dropout inside the attention.

Departures: ``mask_padding=True``, not the authors', leaves padding out of K'^T V; scores then
depend on real items alone, and batches can be trimmed. A zero vector stays zero when normalised
(NaN in the authors' code). The item row of padding is 0, where RecBole's stays at its random draw.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sigma.models.layers import at, init_normal
from sigma.models.transformer import (
    Block,
    FeedForward,
    PositionedItems,
    SelfAttention,
    real_keys,
)


class LinearAttention(SelfAttention):
    """LayerNorm(X + dropout(A W_O + b_O)), (B, L, D) -> (B, L, D); arguments as its parent."""

    def forward(
        self, states: Tensor, visible: Tensor | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """Sum over ``visible`` positions.

        Args:
            states: (B, L, D).
            visible: bool (B, 1, 1, L), True where a position enters K'^T V; None is everywhere.
            columns: (B,) the one position of each row to return, (B, 1, D); None returns all.
        """
        return self.update(at(states, columns), states, visible)

    def mix(self, queries: Tensor, states: Tensor, visible: Tensor | None = None) -> Tensor:
        q = self.heads(self.query(queries))
        k, v = (self.heads(f(states)) for f in (self.key, self.value))
        q, k = (F.normalize(F.elu(x), dim=-1) for x in (q, k))
        if visible is not None:
            k = k * visible.transpose(-1, -2)
        mixed = q @ (k.transpose(-1, -2) @ v) / q.shape[-1] ** 0.5
        return mixed.transpose(1, 2).flatten(2)


class LinRec(PositionedItems):
    """Items (B, L), lengths (B,) -> hidden (B, L, D).

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

    padding_invariant = False
    causal = False  # K'^T V sums over the whole row
    reads_one = True

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
        self.padding_invariant = mask_padding
        self.layers = nn.ModuleList(
            Block(
                LinearAttention(hidden_size, num_heads, dropout),
                FeedForward(hidden_size, inner_size, dropout, activation),
            )
            for _ in range(num_layers)
        )
        self.apply(init_normal)

    def forward(self, items: Tensor, lengths: Tensor, columns: Tensor | None = None) -> Tensor:
        visible = real_keys(lengths, items.shape[1]) if self.padding_invariant else None
        return self.encoded(self.embedded(items), self.layers, visible, columns)
