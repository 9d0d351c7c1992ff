"""The transformer's parts as RecBole and BERT lay them out: post-norm, separate projections.

Vaswani et al., "Attention Is All You Need", 2017; Devlin et al., "BERT", 2019.

Symbols: B rows, L positions, D hidden size, H heads, d = D / H.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.errors import UserError
from sigma.models.layers import Dropout, TiedItems, at, item_table


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: nn.Dropout) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V with dropout of the weights.

    Args:
        q: (B, H, Q, d).
        k: (B, H, L, d).
        v: (B, H, L, d).
        visible: bool, broadcast to (B, H, Q, L); None is causal, for Q = L.
        dropout: of the weights.
    """
    p = dropout.p if dropout.training else 0.0
    if p == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, dropout_p=p, is_causal=visible is None
        )
    # With dropout PyTorch has no fused kernel for the CPU, and a slow way without one.
    if visible is None:
        visible = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    hidden = torch.zeros(visible.shape, dtype=q.dtype).masked_fill_(~visible, float("-inf"))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + hidden
    return dropout(scores.softmax(-1)) @ v


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class SelfAttention(nn.Module):
    """LayerNorm(X + dropout(softmax(Q K^T / sqrt(d)) V W_O)), (B, L, D) -> (B, L, D).

    Args:
        size: D.
        num_heads: H.
        dropout: of the output.
        attention_dropout: of the attention weights.

    Raises:
        UserError: H does not divide D.
    """

    def __init__(
        self, size: int, num_heads: int, dropout: float, attention_dropout: float = 0.0
    ) -> None:
        super().__init__()
        if num_heads < 1 or size % num_heads:
            raise UserError(
                f"model.hidden_size={size} must be a multiple of model.num_heads={num_heads}."
            )
        self.num_heads = num_heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.out = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.attention_dropout = Dropout(attention_dropout)

    def heads(self, states: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, d)."""
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def mix(self, queries: Tensor, states: Tensor, visible: Tensor | None = None) -> Tensor:
        """softmax(Q K^T / sqrt(d)) V of all heads side by side, before W_O, (B, L, D).

        Args:
            queries: (B, L, D), mapped to Q.
            states: (B, L, D), mapped to K and V.
            visible: see ``forward``.
        """
        mixed = attend(
            self.heads(self.query(queries)),
            self.heads(self.key(states)),
            self.heads(self.value(states)),
            visible,
            self.attention_dropout,
        )
        return mixed.transpose(1, 2).flatten(2)

    def forward(
        self, states: Tensor, visible: Tensor | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """Attend over ``visible`` positions.

        Args:
            states: (B, L, D).
            visible: bool, (B, 1, 1, L) or (B, 1, L, L), True where a query (row) may see a key
                (column); None is causal: position t sees 0 … t.
            columns: (B,) the one position of each row to return, (B, 1, D); None returns all.
        """
        if columns is not None and visible is None:
            visible = real_keys(columns + 1, states.shape[1])
        return self.update(at(states, columns), states, visible)

    def update(self, queries: Tensor, states: Tensor, visible: Tensor | None) -> Tensor:
        """The block's output where ``queries`` (B, Q, D) stand, from ``states`` (B, L, D)."""
        return self.norm(queries + self.dropout(self.out(self.mix(queries, states, visible))))


class FeedForward(nn.Module):
    """LayerNorm(X + dropout(f(X W1 + b1) W2 + b2)), (B, L, D) -> (B, L, D).

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
        attention: (B, L, D), visible, columns -> (B, L or 1, D).
        feed_forward: position by position.
    """

    def __init__(self, attention: SelfAttention, feed_forward: FeedForward) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward

    def forward(
        self, states: Tensor, visible: Tensor | None = None, columns: Tensor | None = None
    ) -> Tensor:
        """Arguments as ``SelfAttention.forward``."""
        return self.feed_forward(self.attention(states, visible, columns))


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
    ) -> None:
        super().__init__(
            SelfAttention(size, num_heads, dropout, attention_dropout),
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

    def forward(self, states: Tensor) -> Tensor:
        length = states.shape[1]
        if length > self.table.num_embeddings:
            raise UserError(
                f"The input holds {length} positions, the model {self.table.num_embeddings}; "
                "build it with model.max_length of at least the data's dataset.max_length."
            )
        return states + self.table.weight[:length]


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

    def embedded(self, items: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        return self.dropout(self.norm(self.positions(self.items(items))))

    def encoded(
        self,
        states: Tensor,
        layers: Iterable[nn.Module],
        visible: Tensor | None,
        columns: Tensor | None,
    ) -> Tensor:
        """(B, L, D) through the layers; with columns (B,) the last works there alone, (B, 1, D)."""
        *inner, last = layers
        for layer in inner:
            states = layer(states, visible)
        return last(states, visible, columns)


def real_keys(lengths: Tensor, width: int) -> Tensor:
    """(B,) -> bool (B, 1, 1, L): every query sees the real items and no padding."""
    return (torch.arange(width, device=lengths.device) < lengths[:, None])[:, None, None]
