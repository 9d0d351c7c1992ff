"""SASRec: Self-Attentive Sequential Recommendation.

Kang & McAuley, ICDM 2018.

RecBole's form, which the SIGMA authors ran:

    X = dropout(LayerNorm(E[items] + P))                          (T, D)                        (1)
    X = LayerNorm(X + dropout(causal attention(X)))               num_layers times,             (2)
    X = LayerNorm(X + dropout(GELU(X W1 + b1) W2 + b2))           one after the other           (3)
    score of item k = X[n_u] · E[k]

The form of its authors' code, ``norm_first``:

    X = dropout(sqrt(D) E[items] + P)                             (T, D)                        (4)
    Q = LayerNorm(X)                                              num_layers times,             (5)
    A = Q + softmax((Q W_Q) (X W_K)^T / sqrt(d), causal) X W_V    one after the other           (6)
    F = LayerNorm(A)                                                                            (7)
    X = F + dropout(dropout(ReLU(F W1 + b1)) W2 + b2)                                           (8)
    score of item k = LayerNorm(X[n_u]) · E[k]                                                  (9)

Departures from the paper: in RecBole's form the norm follows the residual, with GELU, an output map
W_O, a norm of the embeddings and N(0, 0.02) at the start. In the authors' code the norm precedes
each part, as in the paper, but the residual carries the normed states where the paper's carries X;
weights start Xavier uniform. The paper's training is ``objective=all_positions loss=bce``.
Departure from the authors' code: positions are counted from the first item kept; theirs, with
padding on the left, from the last.
"""

from typing import Any

from torch import Tensor, nn

from sigma.models.layers import at, clear_padding, encode, init_normal
from sigma.models.transformer import FeedForward, SelfAttention, Transformer
from sigma.ops import Places, Rows, places_of


class NormFirstAttention(SelfAttention):
    """A of the authors' form, (T, D) -> (T, D), or (M, D) at places."""

    def __init__(self, size: int, num_heads: int, *, dropout: float, **options: Any) -> None:
        super().__init__(size, num_heads, dropout=dropout, **options)
        del self.out, self.dropout  # no W_O, and no dropout but of the weights

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        queries = self.norm(at(states, places))  # eq. 5
        return queries + self.mix(queries, states, rows, places)  # eq. 6


class NormFirstFeedForward(FeedForward):
    """X of the authors' form, (T, D) -> (T, D)."""

    def __init__(self, size: int, inner: int, *, dropout: float, activation: str) -> None:
        super().__init__(size, inner, dropout=dropout, activation=activation, inner_dropout=dropout)

    def forward(self, states: Tensor) -> Tensor:
        states = self.norm(states)  # eq. 7
        return states + self.update(states)  # eq. 8


def init_xavier_uniform(module: nn.Module) -> None:
    """The authors' start of maps and tables, padding zero; for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.xavier_uniform_(module.weight)
    if isinstance(module, nn.Embedding):
        clear_padding(module)


class SASRec(Transformer):
    """Packed items (T,) -> states (M, D) at places; arguments as above and in the base."""

    causal = True

    def __init__(
        self, num_items: int, max_length: int, norm_first: bool = False, **options: Any
    ) -> None:
        attention = NormFirstAttention if norm_first else SelfAttention
        feed_forward = NormFirstFeedForward if norm_first else FeedForward
        super().__init__(num_items, max_length, attention, feed_forward, **options)
        self.norm_first = norm_first
        self.apply(init_normal)
        if norm_first:
            self.apply(init_xavier_uniform)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        read = places_of(places, items.shape[0])
        if not self.norm_first:
            return encode(self.layers, self.embedding(items, rows), rows, read)  # eq. 1-3
        states = self.scaled_embedding(items, rows)  # eq. 4
        return self.norm(encode(self.layers, states, rows, read))  # eq. 9
