"""Many positions as the spans they fill: an array of users, where a list would be as long as all.

Symbols: S spans, n positions in all.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

SOME = 2**24  # positions at a time


class Spans:
    """All positions of spans, one span after the other, by their number from 0.

    Args:
        starts: (S,) int64, first positions.
        stops: (S,) int64, one past the last; a span that stops before its start is empty.
    """

    def __init__(self, starts: np.ndarray, stops: np.ndarray) -> None:
        self.stops = stops
        self.ends = np.cumsum((stops - starts).clip(min=0))  # positions up to the end of each

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """Positions (m,) int64 of numbers (m,)."""
        ends, stops = torch.from_numpy(self.ends), torch.from_numpy(self.stops)
        span = torch.searchsorted(ends, numbers, right=True)
        return stops[span] - (ends[span] - numbers)

    def parts(self) -> Iterator[np.ndarray]:
        """All positions in order, some at a time."""
        for first in range(0, len(self), SOME):
            stop = min(first + SOME, len(self))
            low, high = np.searchsorted(self.ends, [first, stop - 1], side="right")
            ends = self.ends[low : high + 1]
            counts = np.diff(ends.clip(max=stop), prepend=first)
            yield np.arange(first, stop) + np.repeat(self.stops[low : high + 1] - ends, counts)

    def positions(self) -> np.ndarray:
        """All of them (n,) int64 in order."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self.parts()])
