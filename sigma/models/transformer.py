"""The transformer's parts as RecBole and BERT lay them out: post-norm, separate projections.

Vaswani et al., "Attention Is All You Need", 2017; Devlin et al., "BERT", 2019.

    A = softmax(Q K^T / sqrt(d)) V,  Q = X W_Q + b_Q, K and V likewise        of every head     (1)
    X = LayerNorm(X + dropout(A W_O + b_O))                                                     (2)
    X = LayerNorm(X + dropout(f(X W1 + b1) W2 + b2))                                            (3)
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sigma.arguments import Count, Share
from sigma.errors import UserError
from sigma.models.layers import Dropout, TiedItems, at
from sigma.ops import Places, Rows, attend

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class SelfAttention(nn.Module):
    """Equations 1 and 2, (T, D) -> (T, D), or (M, D) at places; not ``causal``: of whole rows."""

    def __init__(
        self,
        size: int,
        num_heads: Count,
        *,
        dropout: Share,
        attention_dropout: Share = 0.0,
        causal: bool = True,
    ) -> None:
        super().__init__()
        if num_heads < 1 or size % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide hidden_size={size}.")
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
        """A, the heads side by side, of queries (M, D) at places and states (T, D)."""
        q = self.heads(self.query(queries))  # (M, H, d)
        k, v = self.heads(self.key(states)), self.heads(self.value(states))  # (T, H, d)
        index = None if places is None else places.at
        return attend(q, k, v, rows, index, self.causal, self.weights_dropout()).flatten(1)  # eq. 1

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        queries = at(states, places)
        mixed = self.mix(queries, states, rows, places)
        return self.norm(queries + self.dropout(self.out(mixed)))  # eq. 2


class FeedForward(nn.Module):
    """Equation 3, (T, D) -> (T, D); ``inner_dropout`` is of f's output."""

    def __init__(
        self,
        size: int,
        inner: int,
        *,
        dropout: Share,
        activation: str = "gelu",
        inner_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation='{activation}' must be gelu or relu.")
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
        return self.norm(states + self.update(states))  # eq. 3


class Block(nn.Module):
    """Attention, then a feed-forward layer; called as the attention is."""

    def __init__(self, attention: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(self, *inputs: Any) -> Tensor:
        return self.feed_forward(self.attention(*inputs))


class Positions(nn.Module):
    """Adds a learned embedding of each position, counted from the first item of its row."""

    def __init__(self, max_length: int, size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(max_length, size)

    def index(self, rows: Rows, size: int) -> Tensor:
        """The position of each of ``size`` places, (T,)."""
        return rows.positions(size)

    def forward(self, states: Tensor, rows: Rows) -> Tensor:
        self._check(rows.reach)
        return states + self.table(self.index(rows, states.shape[0]))

    def padded(self, states: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        self._check(states.shape[1])
        return states + self.table.weight[: states.shape[1]]

    def _check(self, length: int) -> None:
        if length > self.table.num_embeddings:
            raise UserError(
                f"The input holds {length} positions, the model {self.table.num_embeddings}; its "
                "max_length must be at least the data's."
            )


class PositionedItems(TiedItems):
    """Items with learned positions."""

    positions_type = Positions

    def __init__(self, num_items: int, max_length: int, **options: Any) -> None:
        super().__init__(num_items, **options)
        self.positions = self.positions_type(max_length, self.items.embedding_dim)

    def scaled_embedding(self, items: Tensor, rows: Rows) -> Tensor:
        """dropout(sqrt(D) E[items] + P), (T,) -> (T, D)."""
        states = self.items(items)
        return self.dropout(self.positions(states * states.shape[-1] ** 0.5, rows))


class Transformer(PositionedItems):
    """dropout(LayerNorm(E[items] + P)), and layers of attention and feed-forward.

    Args:
        attention: called with D, ``num_heads`` and both dropouts.
        feed_forward: called with D, ``inner_size``, ``dropout`` and ``activation``.
    """

    def __init__(
        self,
        num_items: int,
        max_length: Count,
        attention: Callable[..., nn.Module] = SelfAttention,
        feed_forward: Callable[..., nn.Module] = FeedForward,
        hidden_size: Count = 64,
        num_layers: Count = 2,
        num_heads: Count = 2,
        inner_size: Count = 256,
        dropout: Share = 0.2,
        attention_dropout: Share = 0.2,
        activation: str = "gelu",
        **options: Any,
    ) -> None:
        options |= {"hidden_size": hidden_size, "dropout": dropout}
        super().__init__(num_items, max_length, **options)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        dropouts = {"dropout": dropout, "attention_dropout": attention_dropout}
        self.layers = nn.ModuleList(
            Block(
                attention(hidden_size, num_heads, **dropouts),
                feed_forward(hidden_size, inner_size, dropout=dropout, activation=activation),
            )
            for _ in range(num_layers)
        )

    def embedding(self, items: Tensor, rows: Rows) -> Tensor:
        return self.dropout(self.norm(self.positions(self.items(items), rows)))

    def padded_embedding(self, items: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        return self.dropout(self.norm(self.positions.padded(self.items(items))))
