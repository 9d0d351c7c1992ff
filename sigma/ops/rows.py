"""Where the rows of a packed batch lie, and the moves between packed and padded states.

A batch is its rows laid end to end: T places, row b the places ``offsets[b]`` … ``offsets[b + 1]``
- 1. Places behind the last row (there are some on CUDA, where T is one of a few sizes) belong to no
row; whatever stands there is finite and reaches no result.

Symbols: T places, B rows, M places whose state is wanted, L columns of a padded batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def typed(x: Tensor, kind: torch.dtype) -> Tensor:
    """``x`` in another type, or as it is: a call that changes nothing costs a little, too."""
    return x if x.dtype == kind else x.to(kind)


class Rows(NamedTuple):
    """The rows of a packed batch.

    Attributes:
        offsets: (B + 1,) int64, from 0, never falling.
        longest: no row is longer; known on the host, so that nothing need ask the device.
        times: (T,) int64, of each place's item, in the data's unit; None but for models that read
            them.
        next_times: (T,) int64, of the item after it, at a row's end that to predict; None but for
            models that read the target's time.
    """

    offsets: Tensor
    longest: int
    times: Tensor | None = None
    next_times: Tensor | None = None

    @property
    def reach(self) -> int:
        """Positions of items in their rows are below this."""
        return self.longest

    def row_of(self, places: Tensor) -> Tensor:
        """The row of each place, int64; B behind the last row."""
        return torch.searchsorted(self.offsets, places, right=True) - 1

    def positions(self, size: int) -> Tensor:
        """Where in its row each of ``size`` places stands, (T,) int64 from 0.

        Behind the last row the count starts anew every ``longest`` places, so that a table of
        positions need hold no more.
        """
        places = torch.arange(size, device=self.offsets.device)
        return (places - self.offsets[self.row_of(places)]) % self.longest


def rows_of(lengths: Tensor, longest: int | None = None) -> Rows:
    """Rows of these lengths (B,), end to end; ``longest`` is read from them unless given."""
    if longest is None:
        longest = int(lengths.max()) if len(lengths) else 0
    return Rows(torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), longest)
