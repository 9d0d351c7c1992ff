"""ECHO as the authors of SIGMA wrote it anew for their comparison.

SIGMA: Liu et al., AAAI 2025; EchoMamba4Rec itself is ``sigma.models.echo``.

Symbols: L columns (the data set's max_length), H high-pass mask and C complex filter, both (D,),
rev reversal of all L columns. (B, L, D) else.

    X = LayerNorm(dropout(E[items]))                                                            (1)
    x = LayerNorm(Re ifft((H + C) ⊙ fft(X)) + X)          along the hidden dimension            (2)
    x = (x V1 + v1) ⊙ SiLU(x V2 + v2)                                                           (3)
    y = LayerNorm(Mamba(x) + Mamba(rev(x)) + Mamba(X))    one shared Mamba, not reversed back   (4)
    a = y U1 + u1                                                                               (5)
    y = LayerNorm(dropout(a ⊙ SiLU(y U2 + u2) + a + y))                                         (6)
    X = LayerNorm(y + dropout(dropout(GELU(y W1 + b1)) W2 + b2))  num_layers times from (2) on  (7)
    score of item k = X[n_u] · E[k]

What the published file means:
- H is 1 at frequencies |f| >= ``cutoff`` and 0 below; the cut-off is a parameter in their file, but
  never trained. Frequencies are multiples of 1/D: at 0.001 and D <= 1000, H removes the zero
  frequency alone, the mean over the hidden dimension, which the layer norm removes anyway. So H has
  no effect on any score, and with C = 1 at the start, LayerNorm(...) gives X back.
- rev(x) is not reversed back: column n_u - 1, read out, has seen the *last* n_u of the L columns.
  For a history of at most L / 2 items these are padding alone, and Mamba(rev(x)) is one constant
  vector per length. Above that it has seen the last 2 n_u - L items, newest first; so the model is
  neither causal nor unmoved by padding, which enters as the first norm's bias.

Departures: three unused combining weights are left out; C is held as real and imaginary part,
(D, 2). N(0, 0.02) at the start, within the Mamba block, too (see ``init_around_mamba``).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.models.layers import Dropout
from sigma.models.mamba import Columns, MambaFactory, PaddedMambaStack
from sigma.models.transformer import FeedForward


class HiddenFilter(nn.Module):
    """Equation 2, along the hidden dimension, (B, L, D) -> (B, L, D); ``cutoff`` is H's."""

    highpass: Tensor

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        highpass = (torch.fft.fftfreq(size).abs() >= cutoff).float()
        self.register_buffer("highpass", highpass, persistent=False)
        self.weight = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(size, 1))
        self.norm = nn.LayerNorm(size, eps=1e-5)

    def forward(self, states: Tensor) -> Tensor:
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        gain = self.highpass + torch.view_as_complex(self.weight.to(wide.dtype))  # H + C: (D,)
        filtered = torch.fft.ifft(gain * torch.fft.fft(wide)).real
        return self.norm(filtered.to(states.dtype) + states)  # eq. 2


class EchoSigmaLayer(nn.Module):
    """Equations 2 to 7; ``cutoff``, of the high-pass, is in cycles per hidden dimension."""

    def __init__(
        self, size: int, mamba: MambaFactory, *, dropout: float, cutoff: float = 0.001
    ) -> None:
        super().__init__()
        self.filter = HiddenFilter(size, cutoff)
        self.value_in = nn.Linear(size, size)
        self.gate_in = nn.Linear(size, size)
        self.mamba = mamba(size)
        self.mamba_norm = nn.LayerNorm(size, eps=1e-12)
        self.value_out = nn.Linear(size, size)
        self.gate_out = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(size, 4 * size, dropout=dropout, inner_dropout=dropout)

    def forward(self, states: Tensor, columns: Columns) -> Tensor:
        x = self.filter(states)  # eq. 2
        x = self.value_in(x) * F.silu(self.gate_in(x))  # eq. 3
        inputs = (x, x.flip(1), states)  # each read from the left by the one Mamba
        a, b, c = (self.mamba(columns.pack(y), columns.rows, columns.places) for y in inputs)
        y = self.mamba_norm(a + b + c)  # eq. 4
        value = self.value_out(y)  # eq. 5: a
        y = self.norm(self.dropout(value * F.silu(self.gate_out(y)) + value + y))  # eq. 6
        return self.feed_forward(y)  # eq. 7


class EchoSigma(PaddedMambaStack):
    """Packed items (T,) -> states (M, D) at places; arguments as in ``sigma.models.base``."""

    layer_type = EchoSigmaLayer
