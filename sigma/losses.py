"""Losses: states (M, D) and their targets (M,) -> a scalar, the mean over targets.

Symbols: M targets, D hidden size, K items, n negatives of each target, t a target, s_i the score of
item i, N the target's negatives (``sigma.negatives``: any item but the target), σ the sigmoid.

    CrossEntropy    -s_t + log Σ_{i=1..K} exp s_i
    BPR             -1/n Σ_{j in N} log σ(s_t - s_j)
    BCE             -log σ(s_t) - Σ_{j in N} log(1 - σ(s_j))
    GBCE            -1/(n+1) (β log σ(s_t) + Σ_{j in N} log(1 - σ(s_j)))
    SampledSoftmax  -s_t + log(exp s_t + 1/n Σ_{j in N} exp(s_j) / Q(j | not t))

Each is built with the training counts of the items, and is called with the model's ``logits``:
states (M, D) -> (M, K) scores of items 1 … K, or with items (M, n) -> their (M, n) scores. Scores
of half precision are taken to float32 first. A target of 0 fills a batch up and is left out of the
mean.

Where they depart from their papers: SASRec and BPR draw a negative from the items the user never
touched, gSASRec from all; here it is any item but the target itself, everywhere.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.arguments import Count, Distribution, Share, checked
from sigma.negatives import Negatives, Power
from sigma.ops.cross_entropy import linear_cross_entropy
from sigma.ops.scores import Logits, TiedScores


def full_precision(scores: Tensor) -> Tensor:
    """Scores in float32, float64 kept: the three digits of bfloat16 are too few for a loss."""
    return scores if scores.dtype == torch.float64 else scores.float()


class CrossEntropy(nn.Module):
    """Softmax cross entropy over all items (SIGMA's eq. 11, 12)."""

    def __init__(self, item_counts: Tensor) -> None:
        super().__init__()

    def forward(self, states: Tensor, targets: Tensor, logits: Logits) -> Tensor:
        """The loss of states (M, D) and item ids (M,) from 1, or 0 to leave a state out."""
        if isinstance(logits, TiedScores):
            table = logits.weight
            if logits.others is not None:
                table = torch.cat([table, logits.others])
            return linear_cross_entropy(logits.queries(states), table, logits.bias, targets - 1)
        return F.cross_entropy(full_precision(logits(states)), targets - 1, ignore_index=-1)


class SampledLoss(nn.Module):
    """What the losses with negatives share.

    Arguments and errors are those of ``Negatives``.
    """

    def __init__(
        self,
        item_counts: Tensor,
        negatives: Count = 1,
        distribution: Distribution = "uniform",
        power: Power = 1.0,
    ) -> None:
        super().__init__()
        self.negatives = Negatives(
            item_counts, negatives=negatives, distribution=distribution, power=power
        )

    def forward(self, states: Tensor, targets: Tensor, logits: Logits) -> Tensor:
        """The loss; arguments as in ``CrossEntropy``."""
        real = (targets > 0)[:, None]
        targets = targets.clamp(min=1)
        negatives = self.negatives(targets)
        # In one call: a model may transform the states before it scores anything.
        scores = full_precision(logits(states, torch.cat([targets[:, None], negatives], dim=1)))
        losses = self.loss(scores[:, :1], scores[:, 1:], targets, negatives)
        return torch.where(real, losses, 0).sum() / (real.sum() * losses.shape[1])

    def loss(self, positive: Tensor, negative: Tensor, targets: Tensor, items: Tensor) -> Tensor:
        """Terms (M, 1) or (M, n) whose mean is the loss.

        Args:
            positive: (M, 1) scores of the targets (M,).
            negative: (M, n) scores of the negatives, whose ids are ``items`` (M, n).
        """
        raise NotImplementedError


class BPR(SampledLoss):
    """Bayesian personalised ranking (Rendle et al., UAI 2009); the mean over several negatives."""

    def loss(self, positive: Tensor, negative: Tensor, targets: Tensor, items: Tensor) -> Tensor:
        return -F.logsigmoid(positive - negative)


class BCE(SampledLoss):
    """Binary cross entropy of SASRec (Kang & McAuley, ICDM 2018, section III-E).

    The negatives' terms are added up, as in the paper's formula; with one negative this is the sum
    of two terms that the authors' code, and RecMamba's and MambaRec's after it, minimise. With n it
    is n + 1 times the mean over all terms, which GBCE has at t = 0: the minimum is the same.
    """

    def loss(self, positive: Tensor, negative: Tensor, targets: Tensor, items: Tensor) -> Tensor:
        return -(F.logsigmoid(positive) + F.logsigmoid(-negative).sum(1, keepdim=True))


class GBCE(SampledLoss):
    """Generalised binary cross entropy of gSASRec (Petrov & Macdonald, RecSys 2023).

    A sampled share α of the negatives makes σ(s) overestimate the probability p of an item: BCE's
    minimum is at p / (p + α (1 - p)). The weight β of the target takes that back:

        α = n / (K - 1),  β = α (t (1 - 1/α) + 1/α) = 1 - t (1 - α)

    With uniform negatives the minimum is at σ(s) = p for t = 1; t = 0 leaves BCE. Drawn by
    popularity no single β calibrates all items; α is then as if they were uniform.

    Args:
        t: calibration, from 0 to 1.
    """

    @checked
    def __init__(
        self, item_counts: Tensor, negatives: Count = 256, t: Share = 0.75, **options: Any
    ) -> None:
        super().__init__(item_counts, negatives, **options)
        alpha = negatives / (len(item_counts) - 1)
        self.beta = 1 - t * (1 - alpha)

    def loss(self, positive: Tensor, negative: Tensor, targets: Tensor, items: Tensor) -> Tensor:
        total = self.beta * F.logsigmoid(positive) + F.logsigmoid(-negative).sum(1, keepdim=True)
        return -total / (negative.shape[1] + 1)


class SampledSoftmax(SampledLoss):
    """Cross entropy whose sum over all items is estimated from n negatives.

    Subtracting log(n Q(j | not t)) from a negative's score makes the estimate of Σ exp s_i unbiased
    (importance sampling: Bengio & Senécal, IEEE TNN 2008; in recommendation Yi et al., RecSys
    2019). The target is in the sum for certain, not by chance, so its score stays as it is;
    correcting it as well is the common mistake that "Correcting the LogQ correction" (Khrylchenko
    et al., RecSys 2025) mends.

    Args:
        correction: False takes the scores as they are: a softmax over target and negatives.
    """

    def __init__(
        self, item_counts: Tensor, negatives: Count = 256, correction: bool = True, **options: Any
    ) -> None:
        super().__init__(item_counts, negatives, **options)
        self.correction = correction

    def loss(self, positive: Tensor, negative: Tensor, targets: Tensor, items: Tensor) -> Tensor:
        if self.correction:
            log_q = self.negatives.log_probability(items, targets).to(negative)
            negative = negative - (log_q + math.log(negative.shape[1]))
        return torch.cat([positive, negative], dim=1).logsumexp(1, keepdim=True) - positive
