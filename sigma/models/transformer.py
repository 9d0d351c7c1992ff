"""The transformer's parts as RecBole and BERT lay them out: post-norm, separate projections.

Vaswani et al., "Attention Is All You Need", 2017; Devlin et al., "BERT", 2019.

Symbols: T places of packed rows, M places that are read, D hidden size, H heads, d = D / H.
"""

from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from sigma.errors import UserError
from sigma.models.layers import Dropout, TiedItems, at, item_table
from sigma.ops import Places, Rows, attend

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class SelfAttention(nn.Module):
    """LayerNorm(X + dropout(softmax(Q K^T / sqrt(d)) V W_O)), (T, D) -> (T, D).

    Args:
        size: D.
        num_heads: H.
        dropout: of the output.
        attention_dropout: of the attention weights.
        causal: a position sees itself and those before it in its row; False: its whole row.

    Raises:
        UserError: H does not divide D.
    """

    def __init__(
        self,
        size: int,
        num_heads: int,
        dropout: float,
        attention_dropout: float = 0.0,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if num_heads < 1 or size % num_heads:
            raise UserError(
                f"model.hidden_size={size} must be a multiple of model.num_heads={num_heads}."
            )
        self.num_heads = num_heads
        self.causal = causal
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.out = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.attention_dropout = Dropout(attention_dropout)

    def heads(self, states: Tensor) -> Tensor:
        """(T, D) -> (T, H, d)."""
        return states.unflatten(-1, (self.num_heads, -1))

    def weights_dropout(self) -> float:
        """Of the attention weights, as things stand."""
        return self.attention_dropout.p if self.training else 0.0

    def mix(self, queries: Tensor, states: Tensor, rows: Rows, places: Places | None) -> Tensor:
        """softmax(Q K^T / sqrt(d)) V of all heads side by side, before W_O, (M, D).

        Args:
            queries: (M, D), mapped to Q.
            states: (T, D), mapped to K and V.
            rows: of the states.
            places: of the queries; None is all.
        """
        mixed = attend(
            self.heads(self.query(queries)),
            self.heads(self.key(states)),
            self.heads(self.value(states)),
            rows,
            None if places is None else places.at,
            self.causal,
            self.weights_dropout(),
        )
        return mixed.flatten(1)

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        """(T, D) -> (T, D), or (M, D) at places."""
        return self.update(at(states, places), states, rows, places)

    def update(self, queries: Tensor, states: Tensor, rows: Rows, places: Places | None) -> Tensor:
        """The block's output where ``queries`` (M, D) stand, from ``states`` (T, D)."""
        mixed = self.mix(queries, states, rows, places)
        return self.norm(queries + self.dropout(self.out(mixed)))


class FeedForward(nn.Module):
    """LayerNorm(X + dropout(f(X W1 + b1) W2 + b2)), (T, D) -> (T, D).

    Args:
        size: D.
        inner: width between the two maps.
        dropout: of the output.
        activation: f, ``gelu`` or ``relu``.
        inner_dropout: of f's output.

    Raises:
        UserError: unknown activation.
    """

    def __init__(
        self,
        size: int,
        inner: int,
        dropout: float,
        activation: str = "gelu",
        inner_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"Unknown model.activation '{activation}'; choose gelu or relu.")
        self.widen = nn.Linear(size, inner)
        self.narrow = nn.Linear(inner, size)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.inner_dropout = Dropout(inner_dropout)

    def update(self, states: Tensor) -> Tensor:
        """What is added to the states before the norm."""
        wide = self.inner_dropout(self.activation(self.widen(states)))
        return self.dropout(self.narrow(wide))

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(states + self.update(states))


class Block(nn.Module):
    """Attention, then a feed-forward layer.

    Args:
        attention: (T, D), rows, places -> (T, D), or (M, D) at places.
        feed_forward: position by position.
    """

    def __init__(self, attention: SelfAttention, feed_forward: FeedForward) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        """Arguments as ``SelfAttention.forward``."""
        return self.feed_forward(self.attention(states, rows, places))


class TransformerLayer(Block):
    """Self-attention, then feed-forward; arguments as theirs."""

    def __init__(
        self,
        size: int,
        num_heads: int,
        inner: int,
        dropout: float,
        attention_dropout: float,
        activation: str = "gelu",
        causal: bool = True,
    ) -> None:
        super().__init__(
            SelfAttention(size, num_heads, dropout, attention_dropout, causal),
            FeedForward(size, inner, dropout, activation),
        )


class Positions(nn.Module):
    """Adds a learned embedding of each position, counted from the first item kept.

    Args:
        max_length: largest L.
        size: D.

    Raises:
        UserError: a longer input.
    """

    def __init__(self, max_length: int, size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_length, size)

    def forward(self, states: Tensor, rows: Rows) -> Tensor:
        """(T, D) -> (T, D)."""
        self._check(rows.longest)
        return states + self.table(rows.positions(states.shape[0]))

    def padded(self, states: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        self._check(states.shape[1])
        return states + self.table.weight[: states.shape[1]]

    def _check(self, length: int) -> None:
        if length > self.table.num_embeddings:
            raise UserError(
                f"The input holds {length} positions, the model {self.table.num_embeddings}; "
                "build it with model.max_length of at least the data's dataset.max_length."
            )


class PositionedItems(TiedItems):
    """dropout(LayerNorm(E[items] + P)), where the transformers here begin.

    Args:
        num_items: K.
        max_length: largest L.
        size: D.
        dropout: of the embeddings.
        name: what tables call the model.
        extra: rows of E after item K.
    """

    def __init__(
        self,
        num_items: int,
        max_length: int,
        size: int,
        dropout: float,
        name: str,
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.name = name
        self.items = item_table(num_items, size, extra)
        self.positions = Positions(max_length, size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)

    def embedded(self, items: Tensor, rows: Rows) -> Tensor:
        """(T,) -> (T, D)."""
        return self.dropout(self.norm(self.positions(self.items(items), rows)))

    def embedded_padded(self, items: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        return self.dropout(self.norm(self.positions.padded(self.items(items))))


def encoded(
    layers: Iterable[nn.Module], states: Tensor, rows: Rows, places: Places | None
) -> Tensor:
    """(T, D) through the layers, the last of which works at ``places`` alone, (M, D)."""
    *inner, last = layers
    for layer in inner:
        states = layer(states, rows)
    return last(states, rows, places)
