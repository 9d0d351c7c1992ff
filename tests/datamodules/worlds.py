"""Random histories as the arrays of a data set."""

from typing import Any

import numpy as np
import torch

from sigma.datamodules.batches import FlatSequences
from sigma.datamodules.preprocess import Sequences


def sequences(histories: list[list[int]], times: list[list[int]] | None = None) -> Sequences:
    """Histories of item ids, one list a user; raw ids are numbers from 0."""
    lengths = [len(history) for history in histories]
    return Sequences(
        items=np.array([i for history in histories for i in history], dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        timestamps=None if times is None else np.array([t for h in times for t in h], np.int64),
        user_ids=np.arange(len(histories)),
        item_ids=np.arange(max((i for h in histories for i in h), default=0)),
    )


def random_sequences(users: int, items: int, shortest: int, longest: int, seed: int) -> Sequences:
    """``shortest`` to below ``longest`` items a user, at random times that rise."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest, users)
    times = [np.sort(rng.integers(0, 1000, n)).tolist() for n in lengths]
    data = sequences([rng.integers(1, items + 1, n).tolist() for n in lengths], times)
    assert data.num_items == items
    return data


def equal(a: Any, b: Any) -> bool:
    """Of what a batch holds."""
    if isinstance(a, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def flat(data: Sequences, max_length: int, timed: bool = False) -> FlatSequences:
    """With ``timed`` its rows carry times, and those of next items."""
    times = torch.from_numpy(data.timestamps) if timed and data.timestamps is not None else None
    items, offsets = torch.from_numpy(data.items), torch.from_numpy(data.offsets)
    return FlatSequences(items, offsets, max_length, times, next_times=timed)
