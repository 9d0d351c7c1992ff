"""Mamba4Rec: Towards Efficient Sequential Recommendation with Selective State Space Models.

Liu et al., RelKD at KDD 2024.

    X = LayerNorm(dropout(E[items]))                                  (T, D)                    (1)
    X = LayerNorm(dropout(Mamba(X)) + X)                              num_layers times,         (2)
    X = LayerNorm(X + dropout(dropout(GELU(X W1 + b1)) W2 + b2))      one after the other       (3)
    score of item k = X[n_u] · E[k]

With one layer the residual round Mamba is left out, as in the authors' code: LayerNorm(dropout(
Mamba(X))). No positions; W1 is (D, 4D). N(0, 0.02) at the start, within Mamba, too, as the authors'
code really does it (see ``init_around_mamba``).
"""

from typing import Any

from torch import Tensor, nn

from sigma.models.layers import Dropout, at
from sigma.models.mamba import MambaFactory, MambaStack, init_around_mamba
from sigma.models.transformer import FeedForward
from sigma.ops import Places, Rows


class Mamba4RecLayer(nn.Module):
    """Equations 2 and 3; X is added in the first with ``residual``."""

    def __init__(self, size: int, mamba: MambaFactory, *, dropout: float, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.mamba = mamba(size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(size, 4 * size, dropout=dropout, inner_dropout=dropout)

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        mixed = self.dropout(self.mamba(states, rows, places))
        if self.residual:
            mixed = mixed + at(states, places)
        return self.feed_forward(self.norm(mixed))  # eq. 2, 3


class Mamba4Rec(MambaStack):
    """Packed items (T,) -> states (M, D) at places; arguments as in ``sigma.models.base``."""

    causal = True
    layer_type = Mamba4RecLayer

    def __init__(
        self, num_items: int, num_layers: int = 2, reinit_mamba: bool = True, **options: Any
    ) -> None:
        residual = num_layers > 1
        super().__init__(num_items, num_layers=num_layers, residual=residual, **options)
        init_around_mamba(self, reinit_mamba=reinit_mamba)
