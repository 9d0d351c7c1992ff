"""SIGMA: Selective Gated Mamba for Sequential Recommendation.

Liu et al., AAAI 2025. Equation numbers are the paper's.

Symbols: r items the partial flip keeps in place, a1 and a2 trainable scalars. All of (T, D), and
(M, D) from the last layer's products on.

    H0  = LayerNorm(dropout(E[items]))                                            (1)
    H0f = H0 with the first n_u - r items of each row reversed                    (2)
    M   = Mamba(H0),  Mf = Mamba(H0f)                                             (2)
    G   = SiLU(g) + sigmoid(g),  g(H) = Conv1d(H W1 + b1) W2 + b2                 (4-6)
    M^  = M + G(H0) ⊙ M + Mf + G(H0f) ⊙ Mf                                        (3)
    F   = GRU(Conv1d(H0))                                                         (7)
    Z   = LayerNorm(dropout((a1 M^ + a2 F) W3 + b3) + S)                          (8, 9)
    S   = H0 W6 + b6, or H0, or 0                                                 ``shortcut``
    R   = LayerNorm(Z + dropout(dropout(GELU(Z W4 + b4)) W5 + b5))                (10)
    score of item k = R[n_u] · E[k]                                               (11)

Choices where the paper is silent, or departures; those marked * were chosen on Beauty's validation
(docs/what_makes_sigma_learn.md):
(1)  No positional embedding (paper). Dropout, then layer norm*, as in the authors' code; the item
     table starts at N(0, 0.02), everything else as PyTorch and mamba_ssm draw it.
(2)  The flip respects each row's length: a row of n_u <= r items is not flipped. One Mamba for both
     directions, as the formula has it and the code does; ``shared_mamba=False`` is the text's "two
     Mamba blocks". Its step sizes start at softplus(0) = 0.69*, as the authors' really do.
(3)  A residual passes each direction by its gate* (authors' code).
(4)  Depthwise causal convolution of width 3: appendix A counts N D k for it.
(5)  One gate for both directions, as in the formula.
(7)  Dense causal convolution of width 3 ("extract and mix"); the authors' looks one item ahead.
     PyTorch's GRU puts r inside the product: tanh(W c + b + r ⊙ (U f + b')).
(8)  a1 = a2 = 0.5 at the start; no softmax over them.
(9)  A projected shortcut H0 W6 + b6*. Without one, training crawls; with the identity, the last
     item stays its own best match under the tied table, which costs where seen items are ranked and
     helps where they are not.
(10) The residual runs round the PFFN, the norm follows it. Stacked layers repeat (2)-(10).
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.arguments import Count, Number, Share
from sigma.models.layers import GRU, CausalConv1d, Dropout, at
from sigma.models.mamba import MambaFactory, MambaStack
from sigma.ops import Places, Rows, flip


class DenseSelectiveGate(nn.Module):
    """G(H) of eq. 4-6."""

    def __init__(self, size: int, conv_width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)
        self.conv = CausalConv1d(size, conv_width, depthwise=True)
        self.outer = nn.Linear(size, size)

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        mixed = self.conv(self.inner(states), rows)  # eq. 4: (T, D)
        g = self.outer(at(mixed, places))  # eq. 5: (M, D)
        return F.silu(g) + torch.sigmoid(g)  # eq. 5, 6


class SigmaLayer(nn.Module):
    """One G-Mamba block and its PFFN (eq. 2-10), (T, D) -> (T, D), or (M, D) at places.

    Args:
        r: items the partial flip keeps in place; at least L means no flip, 0 a whole flip.
        partial_flip: False reads the unflipped sequence twice (ablation).
        gate: False combines the two directions linearly (ablation).
        gru: False leaves the FE-GRU out (ablation).
        shared_mamba: one Mamba for both directions.
        shortcut: S of eq. 9.
        conv_width: of the convolutions in gate and FE-GRU.
    """

    def __init__(
        self,
        size: int,
        mamba: MambaFactory,
        *,
        dropout: Share,
        r: Number = 5,
        partial_flip: bool = True,
        gate: bool = True,
        gru: bool = True,
        shared_mamba: bool = True,
        conv_width: Count = 3,
        shortcut: Literal["projected", "identity", "none"] = "projected",
    ) -> None:
        super().__init__()
        self.r = r
        self.partial_flip = partial_flip
        self.mamba = mamba(size)
        self.flipped_mamba = None if shared_mamba else mamba(size)
        self.gate = DenseSelectiveGate(size, conv_width) if gate else None
        self.conv = CausalConv1d(size, conv_width) if gru else None
        self.gru = GRU(size, size) if gru else None
        self.mix_mamba = nn.Parameter(torch.tensor(0.5))
        self.mix_gru = nn.Parameter(torch.tensor(0.5)) if gru else None
        self.mixed = nn.Linear(size, size)
        self.shortcut = nn.Linear(size, size) if shortcut == "projected" else None
        self.identity = shortcut == "identity"
        self.mixed_norm = nn.LayerNorm(size, eps=1e-12)
        self.widen = nn.Linear(size, 4 * size)
        self.narrow = nn.Linear(4 * size, size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)

    def direction(
        self, states: Tensor, rows: Rows, places: Places | None, mamba: nn.Module
    ) -> Tensor:
        """M + G(H) ⊙ M of one direction's H (T, D)."""
        m = mamba(states, rows, places)  # eq. 2: M or Mf, (M, D)
        return m if self.gate is None else m + self.gate(states, rows, places) * m  # eq. 3

    def both_directions(self, states: Tensor, rows: Rows, places: Places | None) -> Tensor:
        """M^ of eq. 3."""
        forward = self.direction(states, rows, places, self.mamba)
        flips = self.partial_flip and rows.longest > self.r + 1  # else no row has two to swap
        if not flips and self.flipped_mamba is None:
            return 2 * forward
        flipped = flip(states, rows, self.r) if flips else states  # eq. 2: H0f
        return forward + self.direction(flipped, rows, places, self.flipped_mamba or self.mamba)

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        mixed = self.mix_mamba * self.both_directions(states, rows, places)  # eq. 8: a1 M^
        if self.gru is not None and self.conv is not None and self.mix_gru is not None:
            extracted = self.gru(self.conv(states, rows), rows)  # eq. 7: F, (T, D)
            mixed = mixed + self.mix_gru * at(extracted, places)  # eq. 8: Z, (M, D)
        mixed = self.dropout(self.mixed(mixed))  # eq. 9: Z, but for S and the norm
        if self.shortcut is not None:
            mixed = mixed + self.shortcut(at(states, places))
        elif self.identity:
            mixed = mixed + at(states, places)
        mixed = self.mixed_norm(mixed)
        wide = self.dropout(F.gelu(self.widen(mixed)))  # eq. 10: (M, 4 D)
        return self.norm(mixed + self.dropout(self.narrow(wide)))  # eq. 10: R


class Sigma(MambaStack):
    """Packed items (T,) -> states (M, D) at places.

    Other arguments as in ``SigmaLayer`` and ``sigma.models.base``.
    """

    layer_type = SigmaLayer

    def __init__(self, num_items: int, partial_flip: bool = True, **options: Any) -> None:
        super().__init__(num_items, partial_flip=partial_flip, **options)
        self.causal = not partial_flip  # the flipped direction reads the end of a history first
