"""SIGMA: Selective Gated Mamba for Sequential Recommendation.

Liu et al., AAAI 2025. Equation numbers are the paper's.

Symbols: B rows, L positions, n_u true length of a row, D hidden size, K items, r items the partial
flip keeps in place, a1 and a2 trainable scalars, ⊙ product by element. All of (B, L, D) but E.

    H0  = LayerNorm(dropout(E[items]))                                            (1)
    H0f = H0 with its first n_u - r real items reversed                           (2)
    M   = Mamba(H0),  Mf = Mamba(H0f)                                             (3)
    G   = SiLU(g) + sigmoid(g),  g(H) = Conv1d(H W1 + b1) W2 + b2                 (4-6)
    M^  = M + G(H0) ⊙ M + Mf + G(H0f) ⊙ Mf                                        (3)
    F   = GRU(Conv1d(H0))                                                         (7)
    Z   = LayerNorm(dropout((a1 M^ + a2 F) W3 + b3) + H0 W6 + b6)                 (8, 9)
    R   = LayerNorm(Z + dropout(dropout(GELU(Z W4 + b4)) W5 + b5))                (10)
    score of item k = R[n_u] · E[k], E the (K, D) item table                      (11)

Choices where the paper is silent, or departures; those marked * were chosen on Beauty's validation
(README, "What makes SIGMA learn"):
(1)  No positional embedding (paper). Dropout, then layer norm*, as in the authors' code; the item
     table starts at N(0, 0.02), everything else as PyTorch and mamba_ssm draw it.
(2)  The flip respects each row's true length: a row of n_u <= r items is not flipped, and padding
     stays on the right. The authors' code reverses positions 0 … 44 whatever the length, so most
     users' flipped direction reads padding alone.
(3)  One Mamba for both directions, as the formula has it and the code does; ``shared_mamba=False``
     is the text's "two Mamba blocks". Its step sizes start at softplus(0) = 0.69*, where the
     authors' initialisation puts them, too; mamba_ssm's 0.001 … 0.1 hardly moves the state within
     the few items of a history. A residual passes each direction by its gate* (authors' code).
(4)  Depthwise causal convolution of width 3: appendix A counts N D k for it.
(5)  One gate for both directions, as in the formula.
(7)  Dense causal convolution of width 3 ("extract and mix"); the authors' looks one item ahead.
     PyTorch's GRU puts r inside the product: tanh(W c + b + r ⊙ (U f + b')).
(8)  a1 = a2 = 0.5 at the start; no softmax over them.
(9)  A projected shortcut H0 W6 + b6*. Without one, training crawls; with the identity, the last
     item stays its own best match under the tied table, and takes the first ranks although nobody
     buys it again. A learned map keeps the short path and loses the self-match.
(10) The residual runs round the PFFN, the norm follows it. Stacked layers repeat (2)-(10).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.models.layers import CausalConv1d, Dropout, TiedItems, at, item_table


def partial_flip(lengths: Tensor, width: int, keep: int) -> Tensor:
    """Where each position of the partially flipped sequence reads from, (B, L) int64 (eq. 2).

    Of a row with n real items the first n - keep are reversed; the last ``keep`` and the padding
    stay. A row of at most ``keep`` items is not flipped at all.

    Args:
        lengths: (B,) real items.
        width: L.
        keep: r.
    """
    last = (lengths - keep).clamp(min=0)[:, None] - 1
    position = torch.arange(width, device=lengths.device)
    return torch.where(position <= last, last - position, position)


class Swapped(torch.autograd.Function):
    """Columns of each row reordered by its own inverse, as a flip is: so is its gradient.

    A gather's gradient would be a scatter, which a deterministic run on CUDA sorts first.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        return states[torch.arange(len(index), device=index.device)[:, None], index]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grads[0][torch.arange(len(index), device=index.device)[:, None], index], None


def swapped(states: Tensor, index: Tensor) -> Tensor:
    """``states`` (B, L, D) with column ``index[b, l]`` in column l; ``index`` undoes itself."""
    result: Tensor = Swapped.apply(states, index)
    return result


class DenseSelectiveGate(nn.Module):
    """G(H) of eq. 4-6, (B, L, D) -> (B, L, D), or (B, 1, D) at one column (B,) of each row.

    Args:
        size: D.
        conv_width: of Conv1d.
    """

    def __init__(self, size: int, conv_width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)
        self.conv = CausalConv1d(size, conv_width, depthwise=True)
        self.outer = nn.Linear(size, size)

    def forward(self, states: Tensor, columns: Tensor | None = None) -> Tensor:
        g = self.outer(at(self.conv(self.inner(states)), columns))
        return F.silu(g) + torch.sigmoid(g)


class SigmaLayer(nn.Module):
    """One G-Mamba block and its PFFN (eq. 2-10); arguments as ``Sigma``."""

    def __init__(
        self,
        size: int,
        dropout: float,
        keep: int,
        flip: bool,
        gate: bool,
        gru: bool,
        shared_mamba: bool,
        conv_width: int,
        mamba: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.keep = keep
        self.flip = flip
        self.mamba = mamba(size)
        self.flipped_mamba = None if shared_mamba else mamba(size)
        self.gate = DenseSelectiveGate(size, conv_width) if gate else None
        self.conv = CausalConv1d(size, conv_width) if gru else None
        self.gru = nn.GRU(size, size, batch_first=True) if gru else None
        self.mix_mamba = nn.Parameter(torch.tensor(0.5))
        self.mix_gru = nn.Parameter(torch.tensor(0.5)) if gru else None
        self.mixed = nn.Linear(size, size)
        self.shortcut = nn.Linear(size, size)
        self.mixed_norm = nn.LayerNorm(size, eps=1e-12)
        self.widen = nn.Linear(size, 4 * size)
        self.narrow = nn.Linear(4 * size, size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)

    def direction(self, states: Tensor, columns: Tensor | None, mamba: nn.Module) -> Tensor:
        """M + G(H) ⊙ M of one direction's H (B, L, D), (B, L or 1, D)."""
        read = mamba(states, columns)
        return read if self.gate is None else read + self.gate(states, columns) * read

    def flipped(self, states: Tensor, lengths: Tensor) -> Tensor:
        """H0f of eq. 2; ``states`` itself where no row is long enough to be flipped."""
        width = states.shape[1]
        if not self.flip or width <= self.keep + 1:
            return states
        return swapped(states, partial_flip(lengths, width, self.keep))

    def both_directions(self, states: Tensor, lengths: Tensor, columns: Tensor | None) -> Tensor:
        """M^ of eq. 3, (B, L or 1, D)."""
        flipped = self.flipped(states, lengths)
        if self.flipped_mamba is not None:
            forward = self.direction(states, columns, self.mamba)
            return forward + self.direction(flipped, columns, self.flipped_mamba)
        if flipped is states:
            return 2 * self.direction(states, columns, self.mamba)
        twice = None if columns is None else columns.repeat(2)
        forward, backward = self.direction(
            torch.cat([states, flipped]), twice, self.mamba
        ).chunk(2)  # fmt: skip
        return forward + backward

    def forward(self, states: Tensor, lengths: Tensor, columns: Tensor | None = None) -> Tensor:
        """(B, L, D), (B,) -> (B, L, D), or (B, 1, D) at one column (B,) of each row."""
        mixed = self.mix_mamba * self.both_directions(states, lengths, columns)
        if self.gru is not None and self.conv is not None and self.mix_gru is not None:
            mixed = mixed + self.mix_gru * at(self.gru(self.conv(states))[0], columns)
        shortcut = self.shortcut(at(states, columns))
        mixed = self.mixed_norm(self.dropout(self.mixed(mixed)) + shortcut)
        wide = self.dropout(F.gelu(self.widen(mixed)))
        return self.norm(mixed + self.dropout(self.narrow(wide)))


class Sigma(TiedItems):
    """Items (B, L), lengths (B,) -> hidden (B, L, D).

    Args:
        num_items: K.
        mamba: hidden size -> Mamba block.
        hidden_size: D.
        num_layers: stacked layers.
        dropout: probability.
        r: items the partial flip keeps in place; at least L means no flip, 0 a whole flip.
        partial_flip: False reads the unflipped sequence twice (ablation).
        gate: False combines the two directions linearly (ablation).
        gru: False leaves the FE-GRU out (ablation).
        shared_mamba: one Mamba for both directions.
        conv_width: of the convolutions in gate and FE-GRU.
        name: what tables call the model.
    """

    padding_invariant = True
    causal = False  # the flipped direction reads the end of a history first
    reads_one = True

    def __init__(
        self,
        num_items: int,
        mamba: Callable[[int], nn.Module],
        hidden_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.3,
        r: int = 5,
        partial_flip: bool = True,
        gate: bool = True,
        gru: bool = True,
        shared_mamba: bool = True,
        conv_width: int = 3,
        name: str = "sigma",
    ) -> None:
        super().__init__()
        self.name = name
        self.causal = not partial_flip
        self.items = item_table(num_items, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            SigmaLayer(
                hidden_size, dropout, r, partial_flip, gate, gru, shared_mamba, conv_width, mamba
            )
            for _ in range(num_layers)
        )

    def forward(self, items: Tensor, lengths: Tensor, columns: Tensor | None = None) -> Tensor:
        states = self.norm(self.dropout(self.items(items)))
        for layer in self.layers[:-1]:
            states = layer(states, lengths)
        return self.layers[-1](states, lengths, columns)
