"""SIGMA as its authors released it, defect for defect, each behind a switch.

Liu et al., AAAI 2025: the computation and the initial draw of ``model/gated_mamba.py`` in the
authors' repository, at any N. ``sigma.models.sigma`` follows the paper's equations instead.

Symbols: L columns, padding included (the data set's N), w the three mixing weights, σ the sigmoid.
All of (B, L, D), and (M, D) from the last layer's gates on.

    X  = LayerNorm(dropout(E[items]))                                                           (1)
    Xf = X with columns 0 … flip_until - 1 reversed                                             (2)
    M  = Mamba(X),  Mf = Mamba(Xf), one and the same Mamba                                      (3)
    G  = dropout(SiLU(h) Ws + bs + σ(h) Wg + bg),    h  = X W1 + b1 + X                         (4)
    Gf = dropout(SiLU(hf) Ws + bs + σ(G) Wg + bg),   hf = Xf W2 + b2 + Xf                       (5)
    F  = GRU(Conv1d(X))                                                                         (6)
    Z  = (w2 (M ⊙ G + M) + w1 (Mf ⊙ Gf + Mf) + w0 F) W3 + b3                                    (7)
    Y  = LayerNorm(dropout(Z)), with + X inside when num_layers > 1                             (8)
    H  = LayerNorm(Y + dropout(dropout(GELU(Y W4 + b4)) W5 + b5))                               (9)
    score of item k = H[n_u] · E[k];   loss: softmax cross entropy over items 0 … K            (10)

Defects, as switches (default: as released; docs/released_code.md has what each does):
flip_until=45       the flip's range is fixed and reads padding; null: each row's first n_u - r.
cross_gate          Gf's sigmoid reads G, the other direction's finished gate; false: hf.
look_ahead          Conv1d is centred: at a row's last item it sees padding; false: causal.
reinit_mamba        N(0, 0.02) is drawn inside Mamba as well; false: Mamba's own draw.
padding_item        N(0, 0.02) fills row 0 of E as well and the loss counts it as a class; the
                    lookup passes it no gradient. false: row 0 is zero, and no class.
Other differences from the paper, as arguments: shared_mamba (text: two), separate_dense (paper: one
gate), gate_residual (paper: G ⊙ M), gate_dropout (paper: none), gru_bias (paper: with), mix.
Without one: the gate's form (paper: SiLU(g) + σ(g) of one g with a convolution in it).

The runs of the authors' log computed less (docs/released_code.md); so do, where the file has all:
conv=false          F = GRU(X).
flipped_gate        forward: Gf = G; none: Gf = 0.
projection=false    (7) without W3 and b3.

Left out, as their results are not used: ``gru_input = self.conv1d(g1)``, an error unless N = D, the
softmax over w, and the first product with W2. ``logits`` scores items 1 … K alone; padding is a
class beside them that cross entropy knows. Use another loss with ``padding_item=false``.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.arguments import Number, Share
from sigma.models.layers import GRU, CausalConv1d, Dropout, at
from sigma.models.mamba import Columns, MambaFactory, PaddedMambaStack
from sigma.models.transformer import FeedForward
from sigma.ops import Rows, packed, places_of, take, whole_rows
from sigma.ops.moves import gather

FlippedGate = Literal["forward", "none"] | None  # None is equation 5


class ReleasedGate(nn.Module):
    """Equations 4 and 5, (X, Xf) -> (G, Gf), all (M, D)."""

    def __init__(
        self,
        size: int,
        dropout: float,
        cross_gate: bool,
        separate_dense: bool,
        flipped_gate: FlippedGate,
    ) -> None:
        super().__init__()
        self.cross_gate = cross_gate
        self.flipped_gate = flipped_gate
        second = separate_dense and flipped_gate is None
        self.dense = nn.Linear(size, size)
        self.flipped_dense = nn.Linear(size, size) if second else None
        self.silu = nn.Linear(size, size)
        self.sigmoid = nn.Linear(size, size)
        self.dropout = Dropout(dropout)

    def forward(self, states: Tensor, flipped: Tensor) -> tuple[Tensor, Tensor]:
        h = self.dense(states) + states
        gate = self.dropout(self.silu(F.silu(h)) + self.sigmoid(torch.sigmoid(h)))  # eq. 4
        if self.flipped_gate is not None:
            return gate, gate if self.flipped_gate == "forward" else torch.zeros_like(gate)
        h = (self.flipped_dense or self.dense)(flipped) + flipped
        crossed = gate if self.cross_gate else h
        return gate, self.dropout(self.silu(F.silu(h)) + self.sigmoid(torch.sigmoid(crossed)))


class ReleasedLayer(nn.Module):
    """Equations 2 to 9; switches as above, GRU and convolution keep PyTorch's draw.

    Args:
        flip_until: columns 0 … flip_until - 1 are reversed in every row, whatever its length; 0 is
            no flip; None reverses each row's first n_u - r items.
        r: items that stay in place; read only when ``flip_until`` is None.
        mix: first weights of GRU, flipped and forward direction.
        conv, flipped_gate, projection: what the logged runs had not, as above.
        residual: + X in equation 8.
    """

    def __init__(
        self,
        size: int,
        mamba: MambaFactory,
        *,
        dropout: Share,
        flip_until: int | None = 45,
        r: Number = 5,
        cross_gate: bool = True,
        look_ahead: bool = True,
        shared_mamba: bool = True,
        separate_dense: bool = True,
        gate_residual: bool = True,
        gate_dropout: float = 0.2,
        gru_bias: bool = False,
        mix: Sequence[float] = (0.1, 0.1, 0.8),
        conv: bool = True,
        flipped_gate: FlippedGate = None,
        projection: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if r < 0 or (flip_until is not None and flip_until < 0):
            raise ValueError(f"flip_until={flip_until} and r={r} count items; give 0 or more.")
        if len(mix) != 3:
            raise ValueError(f"mix={list(mix)} must hold three weights: GRU, flipped, forward.")
        gate = ReleasedGate(size, gate_dropout, cross_gate, separate_dense, flipped_gate)
        self.flip_until = flip_until
        self.r = r
        self.look_ahead = look_ahead and conv
        self.gate_residual = gate_residual
        self.residual = residual
        self.mambas = nn.ModuleList(mamba(size) for _ in range(1 if shared_mamba else 2))
        self.gate = gate
        self.conv = CausalConv1d(size, 3) if conv else None
        self.gru = GRU(size, size, bias=gru_bias)
        self.mix = nn.Parameter(torch.tensor(mix, dtype=torch.float32))
        self.mixed = nn.Linear(size, size) if projection else nn.Identity()
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.feed_forward = FeedForward(size, 4 * size, dropout=dropout, inner_dropout=dropout)

    def flipped(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Xf, (B, L, D)."""
        number, width = states.shape[:2]
        if self.flip_until is not None:
            head, tail = states[:, : self.flip_until], states[:, self.flip_until :]
            return torch.cat((head.flip(1), tail), dim=1)
        columns = torch.arange(width, device=states.device)
        last = (lengths - self.r)[:, None] - 1
        first = whole_rows(number, width, states.device).offsets[:-1, None]
        index = (first + torch.where(columns <= last, last - columns, columns)).flatten()
        return gather(states.flatten(0, 1), index, index[:, None], True, True).view_as(states)

    def convolve(self, states: Tensor, rows: Rows, size: int) -> Tensor:
        """Conv1d(X), (B, L, D) -> (T, D); a causal convolution one column later is the centred."""
        if self.conv is None:
            return packed(states, rows, size)
        if not self.look_ahead:
            return self.conv(packed(states, rows, size), rows)
        number = states.shape[0]
        one_more = torch.arange(number + 1, device=states.device)
        longer = Rows(rows.offsets + one_more, rows.longest + 1)
        centred = self.conv(packed(F.pad(states, (0, 0, 0, 1)), longer, size + number), longer)
        places = torch.arange(size, device=states.device)
        later = (rows.row_of(places) + 1).clamp(max=number)
        return take(centred, places_of(places + later, size + number))

    def forward(self, states: Tensor, columns: Columns) -> Tensor:
        flipped = self.flipped(states, columns.lengths)  # eq. 2
        rows, places = columns.rows, columns.places
        forward = self.mambas[0](columns.pack(states), rows, places)  # eq. 3: M, (M, D)
        backward = self.mambas[-1](columns.pack(flipped), rows, places)  # eq. 3: Mf
        x = columns.take(states)
        gate, flipped_gate = self.gate(x, columns.take(flipped))  # eq. 4, 5
        if self.gate_residual:
            gate, flipped_gate = gate + 1, flipped_gate + 1
        mixed = self.mix[2] * (forward * gate) + self.mix[1] * (backward * flipped_gate)
        extracted = self.gru(self.convolve(states, rows, columns.size), rows)  # eq. 6: (T, D)
        mixed = self.dropout(self.mixed(mixed + self.mix[0] * at(extracted, places)))  # eq. 7
        return self.feed_forward(self.norm(mixed + x if self.residual else mixed))  # eq. 8, 9


class SigmaReleased(PaddedMambaStack):
    """Packed items (T,) -> states (M, D) at places. Every default is the released code's.

    Other arguments as in ``ReleasedLayer`` and ``sigma.models.base``.
    """

    layer_type = ReleasedLayer

    def __init__(
        self, num_items: int, num_layers: int = 1, padding_item: bool = True, **options: Any
    ) -> None:
        options |= {"padding_item": padding_item, "residual": num_layers > 1}
        super().__init__(num_items, num_layers=num_layers, **options)
        first = self.layers[0]
        # So short a flip moves nothing.
        self.causal = not first.look_ahead and first.flip_until in (0, 1)
