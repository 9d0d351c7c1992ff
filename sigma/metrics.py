"""Full-ranking metrics with one relevant item per sample (paper eq. 13-15), exact under ties.

Tie rule: items with the target's very score are ordered at random, and every metric is its
expectation over that order. A scorer that gives all items one score thus gets exactly what chance
gives. A NaN score counts as better than the target, a NaN target as worse than everything: NaN
never helps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def target_ranks(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Where each target stands among all items.

    Args:
        scores: (B, K), column j scores item j + 1; items left out of the ranking hold -inf.
        targets: (B,) item ids from 1.

    Returns:
        ``greater`` (B,) items that score above the target and ``ties`` (B,) other items of equal
        score, both int64. The target's rank is uniform on greater + 1 … greater + 1 + ties.
    """
    target_scores = scores.gather(1, targets[:, None] - 1)
    ties = (scores == target_scores).sum(1)
    # Not `scores > target`: a comparison with NaN is false, and NaN must not look good.
    greater = (~(scores <= target_scores)).sum(1)
    broken = target_scores.squeeze(1).isnan()
    return greater - broken.long(), (ties - 1).clamp(min=0)


def gain_table(name: str, k: int, device: torch.device | None = None) -> Tensor:
    """Cumulated gain (k + 1,) float64: entry i is the sum of the metric's gain at ranks 1 … i.

    Args:
        name: ``hr`` (1 in the top k), ``ndcg`` (1 / log2(rank + 1)) or ``mrr`` (1 / rank).

    Raises:
        ValueError: unknown name, or k < 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rank = torch.arange(1, k + 1, dtype=torch.float64, device=device)
    gains = {
        "hr": torch.ones_like(rank),
        "ndcg": 1 / torch.log2(rank + 1),
        "mrr": 1 / rank,
    }
    if name not in gains:
        raise ValueError(f"unknown metric '{name}'; choose from {sorted(gains)}")
    return torch.cat([rank.new_zeros(1), gains[name].cumsum(0)])


class RankMetric(Metric):
    """Mean of HR, NDCG or MRR at k over samples; exact under ties and distributed evaluation.

    Args:
        name: ``hr``, ``ndcg`` or ``mrr``.
        k: cut-off.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor
    gains: Tensor

    def __init__(self, name: str, k: int) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("gains", gain_table(name, k), persistent=False)
        # float64 and integers: the order in which processes are summed cannot show.
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, greater: Tensor, ties: Tensor) -> None:
        """Add samples; ``greater`` and ``ties`` (B,) as from ``target_ranks``."""
        gained = self.gains[(greater + 1 + ties).clamp(max=self.k)]
        gained = gained - self.gains[greater.clamp(max=self.k)]
        self.total += (gained / (ties + 1)).sum()
        self.count += greater.numel()

    def compute(self) -> Tensor:
        """Mean over samples, NaN where there are none."""
        return (self.total / self.count).float()


def metric_names(ks: Sequence[int]) -> list[tuple[str, str, int]]:
    """``(label, name, k)`` of every metric, e.g. ``("ndcg@10", "ndcg", 10)``."""
    return [(f"{name}@{k}", name, k) for k in ks for name in ("hr", "ndcg", "mrr")]
