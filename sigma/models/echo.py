"""EchoMamba4Rec: Harmonizing Bidirectional State Space Models with Spectral Filtering.

Wang, He & Zhu, arXiv 2406.02638, 2024; after the code its authors published.

Symbols: N columns (always ``max_length``), F = N // 2 + 1 frequencies, C complex filter, rev
reversal of all N columns, σ sigmoid. (B, N, D) where nothing else is said.

    X = LayerNorm(dropout(E[items]))                                                            (1)
    X = LayerNorm(dropout(irfft(C ⊙ rfft(X))) + X)                 C (F, D), along positions    (2)
    f = LayerNorm(dropout(Mamba(X)) + X)                                                        (3)
    b = LayerNorm(dropout(rev(Mamba'(rev(X)))) + X)                another Mamba                (4)
    v, g = split((f + b) W1 + b1)                                  W1 (D, 2D)                   (5)
    X = LayerNorm(dropout((v ⊙ σ(g)) W2 + b2 + f + b))             num_layers times from (2) on (6)
    score of item k = X[n_u] · E[k]

The filter is a circular convolution along all N columns: what a history's positions hold depends on
how much padding follows it, and its end reaches its beginning. So the model is always given N
columns, and it is neither causal nor unmoved by padding. Mamba' reads the padding first, which
enters as the first norm's bias.

C is held as real and imaginary part, (F, D, 2), as in the authors' code. It starts at N(0, 0.02),
as do linear maps, within the Mamba blocks, too (see ``init_around_mamba``).

Departures from the authors' code: its n layers hold n pairs of Mamba blocks each, n² in all; here
each holds one (the same at n = 1, which they ran). Its attention block is built and never used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.errors import UserError
from sigma.models.layers import Dropout, spectrum
from sigma.models.mamba import Columns, MambaFactory, PaddedMambaStack
from sigma.ops import Rows, packed, places_of, whole_rows


class FourierFilter(nn.Module):
    """Equation 2, (B, N, D) -> (B, N, D)."""

    def __init__(self, max_length: int, size: int, dropout: float) -> None:
        super().__init__()
        self.max_length = max_length
        self.weight = nn.Parameter(0.02 * torch.randn(max_length // 2 + 1, size, 2))
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        length = states.shape[1]
        if length != self.max_length:
            raise UserError(
                f"The input holds {length} positions, the model's Fourier filter "
                f"{self.max_length}; its max_length must be the data's."
            )
        transformed = spectrum(states)  # (B, F, D)
        weight = torch.view_as_complex(self.weight.to(transformed.real.dtype))  # C
        filtered = torch.fft.irfft(transformed * weight, n=length, dim=1).to(states.dtype)
        return self.norm(self.dropout(filtered) + states)  # eq. 2


class EchoLayer(nn.Module):
    """Equations 2 to 6."""

    def __init__(self, size: int, max_length: int, mamba: MambaFactory, *, dropout: float) -> None:
        super().__init__()
        self.filter = FourierFilter(max_length, size, dropout)
        self.forward_mamba = mamba(size)
        self.backward_mamba = mamba(size)
        self.forward_norm = nn.LayerNorm(size, eps=1e-5)
        self.backward_norm = nn.LayerNorm(size, eps=1e-5)
        self.widen = nn.Linear(size, 2 * size)
        self.narrow = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.dropout = Dropout(dropout)

    def backward(self, states: Tensor, columns: Columns) -> Tensor:
        """rev(Mamba'(rev(X))), (B, N, D) -> (M, D); at each row's last item it reads on no further.

        How many columns that takes is not asked of the device: T is at most an eighth above the
        places that rows hold (``datamodules.batches.size_class``). Any other batch gives NaN.
        """
        (number, width), turned = states.shape[:2], states.flip(1)
        places = columns.places
        # An exported program (``sigma.export``) has as many places as cells, whatever rows hold.
        if torch.compiler.is_compiling() or places is None or places.at.shape[0] != number:
            rows = whole_rows(number, width, states.device)
            backward = self.backward_mamba(turned.flatten(0, 1), rows).view_as(states)
            return columns.take(backward.flip(1))
        size = number * (width + 1) - columns.size * 8 // 9 + 1
        column = places.at - columns.rows.offsets[:-1]
        spans = (width - column).clamp(1, width)
        ends = F.pad(spans.cumsum(0), (1, 0)).clamp(max=size)
        rows, read = Rows(ends, width), places_of(ends[1:] - 1, size)
        backward = self.backward_mamba(packed(turned, rows, size), rows, read)
        fits = (spans.sum() <= size) & ((column >= 0) & (column < columns.lengths)).all()
        return torch.where(fits, backward, torch.nan)

    def forward(self, states: Tensor, columns: Columns) -> Tensor:
        states = self.filter(states)  # eq. 2
        forward = self.forward_mamba(columns.pack(states), columns.rows, columns.places)
        backward = self.backward(states, columns)
        states = columns.take(states)  # (M, D)
        both = self.forward_norm(self.dropout(forward) + states)  # eq. 3
        both = both + self.backward_norm(self.dropout(backward) + states)  # eq. 4
        gated = self.narrow(F.glu(self.widen(both)))  # eq. 5
        return self.norm(self.dropout(gated + both))  # eq. 6; dropout hits f + b, too: as published


class EchoMamba4Rec(PaddedMambaStack):
    """Packed items (T,) -> states (M, D) at places; arguments as in ``sigma.models.base``."""

    layer_type = EchoLayer
