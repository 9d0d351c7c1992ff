"""Full-ranking metrics with one relevant item per sample (paper eq. 13-15), exact under ties.

Tie rule: items with the target's very score are ordered at random, and every metric is its
expectation over that order. A scorer that gives all items one score thus gets exactly what chance
gives. A NaN score counts as better than the target, a NaN target as worse than everything: NaN
never helps.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torchmetrics import Metric

from sigma.arguments import Count, checked

METRICS = ("hr", "ndcg", "mrr")


def not_empty(bounds: Sequence[int | None]) -> Sequence[int | None]:
    lower, upper = bounds[0] or 0, bounds[1]
    if lower < 0 or (upper is not None and upper <= lower):
        raise ValueError("a pair [lower, upper) with the lower one below the upper one")
    return bounds


CutOffs = Annotated[Sequence[Count], Field(min_length=1)]
Pair = Annotated[Sequence[int | None], Field(min_length=2, max_length=2)]
# Name -> [lower, upper) of the history length, None for no bound.
Groups = Mapping[str, Annotated[Pair, AfterValidator(not_empty)]]


def target_ranks(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How many items score above the target, and how many others equal it; both (B,) int64.

    The target's rank is uniform on greater + 1 … greater + 1 + ties.

    Args:
        scores: (B, K), column j scores item j + 1; items left out of the ranking hold -inf.
        targets: (B,) item ids from 1.
    """
    target_scores = scores.gather(1, targets[:, None] - 1)
    ties = (scores == target_scores).sum(1) - 1
    # Not `scores > target`: a comparison with NaN is false, and NaN must not look good.
    greater = (~(scores <= target_scores)).sum(1)
    broken = target_scores.squeeze(1).isnan()
    return torch.where(broken, scores.shape[1] - 1, greater), ties.clamp(min=0)


def gain_table(name: str, k: int) -> Tensor:
    """Cumulated gain (k + 1,) float64: entry i is the sum of a metric's gain at ranks 1 … i."""
    rank = torch.arange(1, k + 1, dtype=torch.float64)
    gain = {"hr": torch.ones_like(rank), "ndcg": 1 / torch.log2(rank + 1), "mrr": 1 / rank}[name]
    return torch.cat([rank.new_zeros(1), gain.cumsum(0)])


def expected_gains(table: Tensor, greater: Tensor, ties: Tensor) -> Tensor:
    """Each sample's metric, expected over the order of ties: (B,) or (B, M).

    Args:
        table: (k + 1,) or (k + 1, M) cumulated gains, see ``gain_table``.
        greater: (B,) int64, as from ``target_ranks``, like ``ties``.
    """
    cut = len(table) - 1
    gained = table[(greater + 1 + ties).clamp(max=cut)] - table[greater.clamp(max=cut)]
    return gained / (ties + 1).reshape(-1, *[1] * (table.ndim - 1))


class MeanLoss(Metric):
    """The mean of losses, each weighted by its targets, without a look at any of them.

    torchmetrics' ``MeanMetric`` looks for NaN in every value, for which it waits for the device;
    told not to (``nan_strategy="disable"``, 1.9), it leaves the weights out.
    """

    full_state_update = False
    mean_value: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("mean_value", torch.tensor(0.0), dist_reduce_fx="sum", persistent=True)
        self.add_state("weight", torch.tensor(0.0), dist_reduce_fx="sum", persistent=True)

    def update(self, loss: Tensor, num_targets: int) -> None:
        """Add the mean loss of a step."""
        self.mean_value += loss.to(self.mean_value.dtype) * num_targets
        self.weight += num_targets

    def compute(self) -> Tensor:
        return self.mean_value / self.weight


class RankingMetrics(Metric):
    """Mean HR, NDCG and MRR at every k, overall and by group of history length.

    Exact under ties and under distributed evaluation, as long as every sample reaches exactly one
    process: sums and counts are added over processes, never means.

    Args:
        prefix: of every name, such as ``sampled_``.
        alone: this process alone computes them, so it does not wait for others.

    Raises:
        ValueError: no cut-off, one below 1, or a group of nobody.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    @checked
    def __init__(
        self,
        ks: CutOffs = (5, 10, 20),
        groups: Groups | None = None,
        prefix: str = "",
        alone: bool = False,
    ) -> None:
        super().__init__(sync_on_compute=not alone)
        self.prefix = prefix
        self.labels = [f"{prefix}{name}@{k}" for k in ks for name in METRICS]
        self.groups = dict(groups or {})
        self.k_max = max(ks)
        # Beyond its own k a metric gains nothing more, so all share one width.
        tables = [gain_table(name, k) for k in ks for name in METRICS]
        widest = [torch.cat([t, t[-1:].expand(self.k_max + 1 - len(t))]) for t in tables]
        self.gains = torch.stack(widest, dim=1)
        # float64 and integers: the order in which processes are summed cannot show.
        shape = (1 + len(self.groups), len(self.labels))
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(shape[0], dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def names(self) -> list[str]:
        """Of all metrics, groups' among them; a group without samples reports none."""
        prefixes = ["", *(f"{group}/" for group in self.groups)]
        return [prefix + label for prefix in prefixes for label in self.labels]

    def update(self, greater: Tensor, ties: Tensor, history_lengths: Tensor) -> None:
        """Add samples; all (B,) int64, the first two as from ``target_ranks``."""
        # Under precision=bf16-true states are cast, too; sums of thousands of users need more.
        if self.gains.device != greater.device:
            self.gains = self.gains.to(greater.device)
        gained = expected_gains(self.gains, greater, ties)
        members = [torch.ones_like(greater, dtype=torch.bool)]
        for lower, upper in self.groups.values():
            inside = history_lengths >= (lower or 0)
            members.append(inside if upper is None else inside & (history_lengths < upper))
        member = torch.stack(members)
        self.total = self.total.to(gained.dtype) + member.to(gained.dtype) @ gained
        self.count += member.sum(1)

    def compute(self) -> dict[str, Tensor]:
        """``{"ndcg@10": …, "short/ndcg@10": …}``; a group without samples is left out."""
        result = {}
        total, counts = self.total.cpu(), self.count.cpu()  # read at once, not one by one
        means = (total / counts[:, None]).float().flatten()
        sizes = counts.repeat_interleave(len(self.labels))
        for name, mean, size in zip(self.names, means, sizes, strict=True):
            if size or "/" not in name:
                result[name] = mean
        return result
