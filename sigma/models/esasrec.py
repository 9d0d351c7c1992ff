"""eSASRec: SASRec with LiGR layers, trained by a sampled softmax.

"eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion", RecSys 2025, after its
authors' code (github.com/blondered/transformer_benchmark, on RecTools 0.13). LiGR layers are of
"From Features to Transformers: Redefining Ranking for Scalable Impact", 2025.

Symbols: σ the sigmoid, f(X) = X W_f + b_f and h(X) = X W_h + b_h the maps of the gates.

    Ê = dropout(E), drawn once a step                             (K + 1, D)                    (0)
    X = dropout(Ê[items] + P)                                     (T, D), P from the last item  (1)
    N = LayerNorm(X)                                              num_layers times,             (2)
    X = X + σ(f(X)) ⊙ dropout(A W_O + b_O)                        one after the other           (3)
        A = softmax((N W_Q + b_Q) (N W_K + b_K)^T / sqrt(d), causal) (N W_V + b_V)
    N = LayerNorm(X)                                                                            (4)
    X = X + σ(h(X)) ⊙ dropout(dropout(SiLU(N W1) ⊙ N W2) W3)                                    (5)
    score of item k = X[n_u] · Ê[k]                                                             (6)

There is no norm at the end. Maps and tables start Xavier normal, W_Q, W_K and W_V as one map of 3 D
outputs. The authors' training is ``objective=all_positions loss=sampled_softmax`` with 256 uniform
negatives and no correction.

Departure: a negative is never the target.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.arguments import Count, Share
from sigma.models.layers import Dropout, at, encode
from sigma.models.recmamba import init_xavier
from sigma.models.transformer import Block, PositionedItems, Positions, SelfAttention
from sigma.ops import Places, Rows, places_of
from sigma.ops.scores import TiedScores


class PositionsFromTheLast(Positions):
    """Adds a learned embedding of each position, counted from the last item of its row."""

    def index(self, rows: Rows, size: int) -> Tensor:
        lengths = F.pad(rows.offsets.diff(), (0, 1), value=1)  # behind the last row, too
        row = rows.row_of(torch.arange(size, device=rows.offsets.device))
        return (lengths[row] - 1 - super().index(rows, size)) % rows.longest


class GatedAttention(SelfAttention):
    """Equations 2 and 3, (T, D) -> (T, D), or (M, D) at places."""

    def __init__(self, size: int, num_heads: Count, **dropouts: Any) -> None:
        super().__init__(size, num_heads, **dropouts)
        self.norm = nn.LayerNorm(size)
        self.gate = nn.Linear(size, size)

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        normed = self.norm(states)  # eq. 2
        mixed = self.out(self.mix(at(normed, places), normed, rows, places))
        x = at(states, places)
        return x + torch.sigmoid(self.gate(x)) * self.dropout(mixed)  # eq. 3


class GatedFeedForward(nn.Module):
    """Equations 4 and 5, (T, D) -> (T, D)."""

    def __init__(self, size: int, inner: int, dropout: Share) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.gate = nn.Linear(size, size)
        self.bend = nn.Linear(size, inner, bias=False)
        self.widen = nn.Linear(size, inner, bias=False)
        self.narrow = nn.Linear(inner, size, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        normed = self.norm(states)  # eq. 4
        wide = self.dropout(F.silu(self.bend(normed)) * self.widen(normed))
        update = self.dropout(self.narrow(wide))
        return states + torch.sigmoid(self.gate(states)) * update  # eq. 5


class ESASRec(PositionedItems):
    """Packed items (T,) -> states (M, D) at places; arguments as in ``sigma.models.base``."""

    causal = True
    positions_type = PositionsFromTheLast

    def __init__(
        self,
        num_items: int,
        max_length: Count,
        hidden_size: Count = 256,
        num_layers: Count = 1,
        num_heads: Count = 1,
        inner_size: Count = 1024,
        dropout: Share = 0.2,
        attention_dropout: Share = 0.2,
        **options: Any,
    ) -> None:
        options |= {"hidden_size": hidden_size, "dropout": dropout}
        super().__init__(num_items, max_length, **options)
        dropouts: dict[str, Any] = {"dropout": dropout, "attention_dropout": attention_dropout}
        self.layers = nn.ModuleList(
            Block(
                GatedAttention(hidden_size, num_heads, **dropouts),
                GatedFeedForward(hidden_size, inner_size, dropout),
            )
            for _ in range(num_layers)
        )
        self.kept: Tensor | None = None  # (K + 1, D), what eq. 0 multiplies with in training
        init_xavier(self)
        for module in self.modules():
            if isinstance(module, GatedAttention):
                for layer in (module.query, module.key, module.value):
                    nn.init.normal_(layer.weight, std=(0.5 / hidden_size) ** 0.5)  # 2 / (D + 3 D)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        table = self.items.weight
        self.kept = self.dropout(torch.ones_like(table)) if self.training else None
        states = self.positions(F.embedding(items, self.table, padding_idx=0), rows)  # eq. 1
        read = places_of(places, items.shape[0])
        return encode(self.layers, self.dropout(states), rows, read)

    @property
    def table(self) -> Tensor:
        """Equation 0, (K + 1, D); in training as the last forward drew it."""
        weight = self.items.weight
        return weight if self.kept is None or not self.training else weight * self.kept

    @property
    def tied(self) -> TiedScores:
        return TiedScores(self.table[1:])  # eq. 6
