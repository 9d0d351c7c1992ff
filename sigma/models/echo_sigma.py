"""ECHO as the authors of SIGMA wrote it anew for their comparison.

EchoMamba4Rec: Wang, He & Zhu, arXiv 2406.02638, 2024 (``sigma.models.echo``). SIGMA: Liu et al.,
AAAI 2025, whose published baselines hold this other model under the name.

Symbols: B rows, L columns, padding included (the data set's max_length), D hidden size, K items,
n_u true length of a row, H high-pass mask and C complex filter, both (D,), rev reversal of all L
columns, ⊙ product by element. (B, L, D) else.

    X = LayerNorm(dropout(E[items]))
    x = LayerNorm(Re ifft((H + C) ⊙ fft(X)) + X)          along the hidden dimension
    x = (x V1 + v1) ⊙ SiLU(x V2 + v2)
    y = LayerNorm(Mamba(x) + Mamba(rev(x)) + Mamba(X))     one shared Mamba, nothing reversed back
    a = y U1 + u1
    y = LayerNorm(dropout(a ⊙ SiLU(y U2 + u2) + a + y))
    X = LayerNorm(y + dropout(dropout(GELU(y W1 + b1)) W2 + b2))      num_layers times from x on
    score of item k = X[n_u] · E[k]

What the published file means:
- H is 1 at frequencies |f| >= ``cutoff`` and 0 below. A comparison has no derivative, so the
  cut-off, a parameter in their file, is never trained; here it is a plain argument. Frequencies are
  multiples of 1/D: at 0.001 and D <= 1000, H removes the zero frequency alone, the mean over the
  hidden dimension, which the layer norm removes anyway. So H has no effect on any score, and with
  C = 1 at the start, LayerNorm(...) gives X back. All the filter learns is C, as one circular
  convolution over the hidden dimensions, whose order carries no meaning.
- rev(x) is not reversed back: column n_u - 1, read out, has seen the *last* n_u of the L columns.
  For a history of at most L / 2 items these are padding alone, and Mamba(rev(x)) is one constant
  vector per length. Above that it has seen the last 2 n_u - L items, newest first; so the model is
  neither causal nor unmoved by padding.

Departures: three unused combining weights are left out; C is held as real and imaginary part,
(D, 2), which Adam treats as it does a complex parameter. Padding's row of E stays zero, so padding
enters as the first norm's bias; RecBole draws that row, too, and trains it as an item that never
comes. N(0, 0.02) at the start, within the Mamba block, too (see ``sigma.models.mamba4rec``).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.models.layers import Dropout
from sigma.models.mamba4rec import MambaStack
from sigma.models.transformer import FeedForward
from sigma.ops import Places, Rows, packed, padded, places_of, whole_rows


class HiddenFilter(nn.Module):
    """LayerNorm(Re ifft((H + C) ⊙ fft(X)) + X) along the hidden dimension, (B, L, D) -> (B, L, D).

    Args:
        size: D.
        cutoff: of H, in cycles per hidden dimension, up to 0.5.
    """

    highpass: Tensor

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        highpass = (torch.fft.fftfreq(size).abs() >= cutoff).float()
        self.register_buffer("highpass", highpass, persistent=False)
        self.weight = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(size, 1))
        self.norm = nn.LayerNorm(size, eps=1e-5)

    def forward(self, states: Tensor) -> Tensor:
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        gain = self.highpass + torch.view_as_complex(self.weight.to(wide.dtype))
        filtered = torch.fft.ifft(gain * torch.fft.fft(wide)).real
        return self.norm(filtered.to(states.dtype) + states)


class EchoSigmaLayer(nn.Module):
    """One layer, (B, L, D) -> (B, L, D), or (M, D) at places; arguments as ``EchoSigma``."""

    def __init__(
        self, size: int, dropout: float, cutoff: float, mamba: Callable[[int], nn.Module]
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
        self.feed_forward = FeedForward(size, 4 * size, dropout, inner_dropout=dropout)

    def forward(
        self, states: Tensor, rows: Rows | None = None, places: Places | None = None, size: int = 0
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); or, of the first n_u columns alone, (M, D) at places.

        Args:
            states: (B, L, D).
            rows: the packed batch's, of n_u columns each; None is all columns.
            places: (M,) in it.
            size: T.
        """
        x = self.filter(states)
        x = self.value_in(x) * F.silu(self.gate_in(x))
        number, width = states.shape[:2]
        columns = whole_rows(number, width, states.device) if rows is None else rows
        read = states.new_zeros(())
        for inputs in (x, x.flip(1), states):  # one Mamba, each read from the left
            if rows is None:
                read = read + self.mamba(inputs.flatten(0, 1), columns)
            else:
                read = read + self.mamba(packed(inputs, rows, size), rows, places)
        y = self.mamba_norm(read)
        value = self.value_out(y)
        y = self.norm(self.dropout(value * F.silu(self.gate_out(y)) + value + y))
        y = self.feed_forward(y)
        return y.view_as(states) if rows is None else y


class EchoSigma(MambaStack):
    """Packed items (T,) -> states (M, D) at places.

    Args:
        num_items: K.
        mamba: hidden size -> Mamba block.
        hidden_size: D.
        num_layers: stacked layers.
        dropout: probability.
        cutoff: of the high-pass, in cycles per hidden dimension; at most 1/D has no effect.
        reinit_mamba: N(0, 0.02) within the Mamba blocks, too (authors' code); their own first step
            sizes then have no effect.
        name: what tables call the model.
    """

    def __init__(
        self,
        num_items: int,
        mamba: Callable[[int], nn.Module],
        hidden_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.3,
        cutoff: float = 0.001,
        reinit_mamba: bool = True,
        name: str = "echo_sigma",
    ) -> None:
        layers = (EchoSigmaLayer(hidden_size, dropout, cutoff, mamba) for _ in range(num_layers))
        super().__init__(num_items, hidden_size, dropout, layers, reinit_mamba, name)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        size = items.shape[0]
        states = self.norm(self.dropout(self.items(padded(items, rows, rows.longest))))
        for layer in self.layers[:-1]:
            states = layer(states)
        return self.layers[-1](states, rows, places_of(places, size), size)
