"""Losses: pure functions of states, item scores and targets."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Logits = Callable[[Tensor], Tensor]


def cross_entropy(states: Tensor, targets: Tensor, logits: Logits) -> Tensor:
    """Softmax cross entropy over all items (paper eq. 11, 12), mean over targets.

    Args:
        states: (M, D).
        targets: (M,) item ids from 1.
        logits: states -> scores (M, K) of items 1 … K.
    """
    return F.cross_entropy(logits(states), targets - 1)


def bpr(states: Tensor, targets: Tensor, logits: Logits) -> Tensor:
    """Bayesian personalised ranking (Rendle et al. 2009): one uniform negative, never the target.

    Args and shapes as in ``cross_entropy``. -log sigmoid(positive - negative), mean over targets.
    """
    scores = logits(states)
    num_items = scores.shape[1]
    # Drawn from the K - 1 others: an index at or above the target stands for the next one.
    negatives = torch.randint(1, num_items, targets.shape, device=targets.device)
    negatives = negatives + (negatives >= targets)
    positive = scores.gather(1, targets[:, None] - 1)
    negative = scores.gather(1, negatives[:, None] - 1)
    return F.softplus(negative - positive).mean()


LOSSES = {"cross_entropy": cross_entropy, "bpr": bpr}
