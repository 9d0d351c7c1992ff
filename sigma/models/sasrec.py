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

The form that was tuned by "Time to Split" (Gusak et al., RecSys 2025) after PyTorch ports of that
code is ``norm_first`` with an output map, which such ports' ``nn.MultiheadAttention`` brings,

    A = Q + softmax((Q W_Q) (X W_K)^T / sqrt(d), causal) X W_V W_O + b_O                       (10)

``start=ported`` and ``padding_item``, by which the softmax of the training has padding as a class.

Departures from the paper: in RecBole's form the norm follows the residual, with GELU, an output map
W_O, a norm of the embeddings and N(0, 0.02) at the start. In the authors' code the norm precedes
each part, as in the paper, but the residual carries the normed states where the paper's carries X;
weights start Xavier uniform. The paper's training is ``objective=all_positions loss=bce``.
Departure from the authors' code: positions are counted from the first item kept; theirs, with
padding on the left, from the last. From both codes: LayerNorm adds 1e-12 to the variance, not 1e-8.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from sigma.models.layers import at, clear_padding, encode, init_normal
from sigma.models.transformer import FeedForward, SelfAttention, Transformer
from sigma.ops import Places, Rows, places_of

Start = Literal["normal", "xavier", "ported"]


class NormFirstAttention(SelfAttention):
    """A of the authors' form, (T, D) -> (T, D), or (M, D) at places."""

    def __init__(
        self, size: int, num_heads: int, *, dropout: float, output_map: bool = False, **options: Any
    ) -> None:
        super().__init__(size, num_heads, dropout=dropout, **options)
        del self.dropout  # none but of the weights
        self.output_map = output_map
        if not output_map:
            del self.out

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        queries = self.norm(at(states, places))  # eq. 5
        mixed = self.mix(queries, states, rows, places)
        return queries + (self.out(mixed) if self.output_map else mixed)  # eq. 6, 10


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


def init_ported(module: nn.Module) -> None:
    """As the ports start: ``init_normal``, but W_Q, W_K and W_V Xavier uniform as one map of 3 D
    outputs, which ``nn.MultiheadAttention`` draws and holds where their ``apply`` sees no map.
    """
    if isinstance(module, SelfAttention):  # called after the maps within it
        for layer in (module.query, module.key, module.value):
            bound = (1.5 / layer.in_features) ** 0.5  # sqrt(6 / (D + 3 D))
            nn.init.uniform_(layer.weight, -bound, bound)
    else:
        init_normal(module)


STARTS: dict[Start, Callable[[nn.Module], None]] = {
    "normal": init_normal,
    "xavier": init_xavier_uniform,
    "ported": init_ported,
}


class SASRec(Transformer):
    """Packed items (T,) -> states (M, D) at places; arguments as above and in the base.

    Args:
        output_map: whether the attention of ``norm_first`` ends in W_O.
        start: of maps and tables; None is ``normal``, or ``xavier`` with ``norm_first``.
        padding_item: padding is a class of the softmax in training; it starts at 0.

    Raises:
        ValueError: an output map without ``norm_first``, or an unknown start.
    """

    causal = True

    def __init__(
        self,
        num_items: int,
        max_length: int,
        norm_first: bool = False,
        output_map: bool | None = None,
        start: Start | None = None,
        padding_item: bool | None = None,
        **options: Any,
    ) -> None:
        if output_map is not None and not norm_first:
            raise ValueError(f"output_map={output_map} is of norm_first=true alone.")
        if start is not None and start not in STARTS:
            raise ValueError(f"start='{start}' must be one of {', '.join(STARTS)}.")
        attention: Callable[..., nn.Module] = SelfAttention
        if norm_first:
            attention = functools.partial(NormFirstAttention, output_map=bool(output_map))
        feed_forward = NormFirstFeedForward if norm_first else FeedForward
        super().__init__(num_items, max_length, attention, feed_forward, **options)
        self.norm_first = norm_first
        self.padding_item = bool(padding_item)
        self.apply(init_normal)
        start = start or ("xavier" if norm_first else "normal")
        if start != "normal":
            self.apply(STARTS[start])

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        read = places_of(places, items.shape[0])
        if not self.norm_first:
            return encode(self.layers, self.embedding(items, rows), rows, read)  # eq. 1-3
        states = self.scaled_embedding(items, rows)  # eq. 4
        return self.norm(encode(self.layers, states, rows, read))  # eq. 9
