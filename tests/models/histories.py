"""Random histories for the models that count, and how such a model reads and scores them."""

import random

import torch
from torch import Tensor

from sigma.models.counted import Counted
from sigma.ops import Rows, rows_of


def random_histories(
    users: int, num_items: int, longest: int, seed: int = 0, shortest: int = 1
) -> list[list[int]]:
    """Histories with repeats; small item ids are the most frequent."""
    draw = random.Random(seed)
    weights = [1 / (1 + i) for i in range(num_items)]
    return [
        draw.choices(range(1, num_items + 1), weights, k=draw.randint(shortest, longest))
        for _ in range(users)
    ]


def flat(histories: list[list[int]], dtype: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
    """The arguments of ``count``."""
    items = torch.tensor([i for history in histories for i in history], dtype=dtype)
    return items, torch.tensor([0, *map(len, histories)]).cumsum(0)


def packed(histories: list[list[int]], width: int) -> tuple[Tensor, Rows]:
    """The last ``width`` items of each, as a batch holds them."""
    cut = [history[-width:] for history in histories]
    lengths = torch.tensor([len(history) for history in cut])
    return torch.tensor([item for history in cut for item in history]), rows_of(lengths, width)


def last_states(model: Counted, histories: list[list[int]], width: int) -> Tensor:
    """States (M, W) after the last item of each history."""
    items, rows = packed(histories, width)
    return model(items, rows, rows.offsets[1:] - 1)


def last_scores(model: Counted, histories: list[list[int]], width: int) -> Tensor:
    """Scores (M, K) after the last item of each history."""
    return model.logits(last_states(model, histories, width))
