"""EchoMamba4Rec: Harmonizing Bidirectional State Space Models with Spectral Filtering.

Wang, He & Zhu, arXiv 2406.02638, 2024; after the code its authors published.

Symbols: B rows, N positions (always ``max_length``), D hidden size, K items, n_u true length of a
row, F = N // 2 + 1 frequencies, C complex filter, rev reversal of all N columns, σ sigmoid, ⊙
product by element. (B, N, D) where nothing else is said.

    X = LayerNorm(dropout(E[items]))
    X = LayerNorm(dropout(irfft(C ⊙ rfft(X))) + X)                 C (F, D), along positions
    f = LayerNorm(dropout(Mamba(X)) + X)
    b = LayerNorm(dropout(rev(Mamba'(rev(X)))) + X)                another Mamba
    v, g = split((f + b) W1 + b1)                                  W1 (D, 2D)
    X = LayerNorm(dropout((v ⊙ σ(g)) W2 + b2 + f + b))             num_layers times from the second
    score of item k = X[n_u] · E[k]                                line on

The filter is a circular convolution along all N columns: what a history's positions hold depends on
how much padding follows it, and its end reaches its beginning. So the model is always given N
columns, and it is neither causal nor unmoved by padding. Mamba' reads the padding first.

C is held as real and imaginary part, (F, D, 2), as in the authors' code: real parameters suit every
optimizer, precision and checkpoint, and Adam treats the two parts alike either way. It starts at
N(0, 0.02), as do linear maps, within the Mamba blocks, too (see ``sigma.models.mamba4rec``).

Departures from the authors' code:
- Its n layers hold n pairs of Mamba blocks each, n² in all; here each holds one. The same at n = 1,
  which they ran.
- Its attention block, which is built and never used, is left out.
- The padding row of E stays zero, so padding enters as the first norm's bias. RecBole draws that
  row, too, and trains it as an item that never comes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.errors import UserError
from sigma.models.layers import Dropout, spectrum
from sigma.models.mamba4rec import MambaStack
from sigma.ops import Places, Rows, packed, padded, padded_places, places_of, take, whole_rows
from sigma.ops.moves import entries, gather


class FourierFilter(nn.Module):
    """LayerNorm(dropout(irfft(C ⊙ rfft(X))) + X) along positions, (B, N, D) -> (B, N, D).

    Args:
        max_length: N.
        size: D.
        dropout: probability.

    Raises:
        UserError: an input that has not N positions.
    """

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
                f"{self.max_length}; set model.max_length to the data's dataset.max_length."
            )
        transformed = spectrum(states)
        weight = torch.view_as_complex(self.weight.to(transformed.real.dtype))
        filtered = torch.fft.irfft(transformed * weight, n=length, dim=1).to(states.dtype)
        return self.norm(self.dropout(filtered) + states)


class Columns(NamedTuple):
    """Where a batch of whole rows is read, and how far each direction must go for it.

    Attributes:
        rows: of the packed batch.
        size: T.
        places: (M,) in the packed batch, and
        cells: the same among the cells (B N,).
    """

    rows: Rows
    size: int
    places: Places
    cells: Places


class Backward(NamedTuple):
    """What the reversed direction must read: each row's columns from the first that is read on.

    Attributes:
        rows: reversed.
        cell: (S,) which cell each of their places holds.
        holder: (B N, 1) which place holds each cell.
        read: (M,) where they are read.
        fits: 1, or NaN where there were more places than S; nothing is read wrong unseen.
    """

    rows: Rows
    cell: Tensor
    holder: Tensor
    read: Places
    fits: Tensor


def backward_rows(columns: Columns, width: int) -> Backward:
    """Of whole rows of ``width`` columns."""
    offsets, index = columns.rows.offsets, columns.places.at
    number = offsets.shape[0] - 1
    lengths = offsets.diff()
    entry = torch.searchsorted(index, offsets[:-1])
    first = index[entry.clamp(max=index.shape[0] - 1)] - offsets[:-1]
    first = torch.where((first >= 0) & (first < lengths), first, lengths)  # nothing is read
    spans = (width - first).clamp(min=0)
    starts = F.pad(spans.cumsum(0), (1, 0))
    # As many as there can be, if one place a row is its last, and T at most an eighth above the
    # places that rows hold, as ``datamodules.batches.size_class`` has it.
    one_each = index.shape[0] == number
    size = number * (width + 1) - columns.size * 8 // 9 + 1 if one_each else number * width
    place = torch.arange(size, device=offsets.device)
    row = (torch.searchsorted(starts, place, right=True) - 1).clamp(max=number - 1)
    column = width - 1 - (place - starts[row])
    real = place < starts[-1]
    cell = torch.where(real, row * width + column, number * width)
    every = torch.arange(number * width, device=offsets.device)
    its_row = every // width
    back = starts[its_row] + width - 1 - every % width
    holder = torch.where(back < starts[its_row + 1], back, size)
    # Where in the packed batch a reversed place stands, and which entry reads it.
    packed_place = torch.where(column < lengths[row], offsets[row] + column, columns.size)
    inverse = torch.where(real, entries(index, packed_place), index.shape[0])
    at = columns.cells.at
    read = Places(
        (starts[at // width] + width - 1 - at % width).clamp(max=size - 1), inverse[:, None]
    )
    fits = torch.where(starts[-1] <= size, 1.0, torch.nan)
    return Backward(Rows(starts, width), cell, holder[:, None], read, fits)


class EchoLayer(nn.Module):
    """Filter, a Mamba block each way, gated linear unit; arguments as ``EchoMamba4Rec``."""

    def __init__(
        self, max_length: int, size: int, dropout: float, mamba: Callable[[int], nn.Module]
    ) -> None:
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

    def both_whole(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Each direction over all columns, (B, N, D) -> (B, N, D) twice."""
        rows = whole_rows(states.shape[0], states.shape[1], states.device)
        forward = self.forward_mamba(states.flatten(0, 1), rows)
        backward = self.backward_mamba(states.flip(1).flatten(0, 1), rows)
        return forward.view_as(states), backward.view_as(states).flip(1)

    def both_read(self, states: Tensor, columns: Columns) -> tuple[Tensor, Tensor]:
        """Each direction as far as it is read, (B, N, D) -> (M, D) twice."""
        rows, cell, holder, read, fits = backward_rows(columns, states.shape[1])
        forward = packed(states, columns.rows, columns.size)
        backward = gather(states.flatten(0, 1), cell, holder, False, False)
        return (
            self.forward_mamba(forward, columns.rows, columns.places),
            self.backward_mamba(backward, rows, read) * fits.to(states.dtype),
        )

    def forward(self, states: Tensor, columns: Columns | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), or (M, D) where it is read."""
        states = self.filter(states)
        if columns is None:
            forward, backward = self.both_whole(states)
        else:
            forward, backward = self.both_read(states, columns)
            states = take(states.flatten(0, 1), columns.cells)
        both = self.forward_norm(self.dropout(forward) + states)
        both = both + self.backward_norm(self.dropout(backward) + states)
        gated = self.narrow(F.glu(self.widen(both)))
        return self.norm(self.dropout(gated + both))  # dropout hits the residual, too: as published


class EchoMamba4Rec(MambaStack):
    """Packed items (T,) -> states (M, D) at places.

    Args:
        num_items: K.
        max_length: N.
        mamba: hidden size -> Mamba block.
        hidden_size: D.
        num_layers: stacked layers.
        dropout: probability.
        reinit_mamba: N(0, 0.02) within the Mamba blocks, too (authors' code); their own first step
            sizes then have no effect.
        name: what tables call the model.
    """

    def __init__(
        self,
        num_items: int,
        max_length: int,
        mamba: Callable[[int], nn.Module],
        hidden_size: int = 64,
        num_layers: int = 1,
        dropout: float = 0.3,
        reinit_mamba: bool = True,
        name: str = "echo",
    ) -> None:
        layers = (EchoLayer(max_length, hidden_size, dropout, mamba) for _ in range(num_layers))
        super().__init__(num_items, hidden_size, dropout, layers, reinit_mamba, name)

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        states = self.norm(self.dropout(self.items(padded(items, rows, rows.longest))))
        for layer in self.layers[:-1]:
            states = layer(states)
        cells = padded_places(rows, places, rows.longest)
        at = places_of(places, items.shape[0])
        return self.layers[-1](states, Columns(rows, items.shape[0], at, cells))
