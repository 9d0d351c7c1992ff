"""Metrics of rankings with one relevant item per sample (paper eq. 13-15), exact under ties.

Every target is ranked among all items, the paper's way, and among those its user has not had, as
where bought items are not shown again: ``hr@10`` and ``unseen/hr@10``.

Tie rule: items with the target's very score are ordered at random, and every metric is its
expectation over that order. A scorer that gives all items one score thus gets exactly what chance
gives. A NaN score counts as better than the target, a NaN target as worse than everything: NaN
never helps.

Beside accuracy, of the first k items that users are shown:

    coverage@k  share of all items that some user is shown
    novelty@k   mean of -log2 of an item's share of the training interactions, in bits
    head@k      share of places taken by the most popular fifth of the items
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor
from torchmetrics import Metric

from sigma.arguments import Count, checked

METRICS = ("hr", "ndcg", "mrr")
BEYOND = ("coverage", "novelty", "head")
# Rankings, by what stands before the names of their metrics.
ALL, UNSEEN, SAMPLED = "", "unseen/", "sampled_"
HEAD = 0.2  # of the items, the most popular
EXACT = 2**24  # numbers that float32 counts without a gap


def metric_name(ranking: str, group: str, label: str) -> str:
    """For example ``unseen/short/hr@10``, or ``short/sampled_hr@10``; no group is all users."""
    group = f"{group}/" if group else ""
    return ranking + group + label if ranking.endswith("/") else group + ranking + label


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
    number = scores.shape[1]
    # As numbers: on the CPU they are summed several times faster than bool.
    kind = scores.dtype if number < EXACT and scores.dtype != torch.float16 else torch.bool
    buffer = torch.empty_like(scores, dtype=kind)
    ties = torch.eq(scores, target_scores, out=buffer).sum(1).long() - 1
    # Not `scores > target`: a comparison with NaN is false, and NaN must not look good.
    greater = number - torch.le(scores, target_scores, out=buffer).sum(1).long()
    broken = target_scores.squeeze(1).isnan()
    return torch.where(broken, number - 1, greater), ties.clamp(min=0)


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


def item_features(item_counts: Tensor) -> Tensor:
    """(K + 1, 3) float64 of items 0 … K: 1, novelty in bits, and whether it is of the head.

    Item 0, which stands for none, has zeros. An item without training interactions is as new as
    one with a single one.
    """
    counts = item_counts.double().clamp(min=1)
    novelty = -(counts / item_counts.sum().clamp(min=1)).log2()
    head = torch.zeros_like(counts)
    number = math.ceil(HEAD * len(counts))
    head[item_counts.sort(descending=True, stable=True).indices[:number]] = 1
    return F.pad(torch.stack([torch.ones_like(counts), novelty, head], dim=1), (0, 0, 1, 0))


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
    """Mean HR, NDCG and MRR at every k by ranking, overall and by group of history length, and
    what the first k items are.

    Exact under ties and under distributed evaluation, as long as every sample reaches exactly one
    process: sums and counts are added over processes, never means.

    Args:
        item_counts: (K,) training interactions of items 1 … K; None leaves out what needs them.
        rankings: their names, which stand before those of their metrics.
        alone: this process alone computes them, so it does not wait for others.

    Raises:
        ValueError: no cut-off, one below 1, or a group of nobody.
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    place: Tensor
    beyond: Tensor

    @checked
    def __init__(
        self,
        ks: CutOffs = (5, 10, 20),
        groups: Groups | None = None,
        item_counts: Tensor | None = None,
        rankings: Sequence[str] = (ALL, UNSEEN),
        alone: bool = False,
    ) -> None:
        super().__init__(sync_on_compute=not alone)
        self.rankings = tuple(rankings)
        self.labels = [f"{name}@{k}" for k in ks for name in METRICS]
        self.groups = dict(groups or {})
        self.ks = tuple(ks)
        self.k_max = max(ks)
        # Beyond its own k a metric gains nothing more, so all share one width.
        tables = [gain_table(name, k) for k in ks for name in METRICS]
        widest = [torch.cat([t, t[-1:].expand(self.k_max + 1 - len(t))]) for t in tables]
        self.gains = torch.stack(widest, dim=1)
        # float64 and integers: the order in which processes are summed cannot show.
        number, group_number = len(self.rankings), 1 + len(self.groups)
        shape = (number, group_number, len(self.labels))
        self.add_state("total", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(shape[1], dtype=torch.int64), dist_reduce_fx="sum")
        self.features = None if item_counts is None else item_features(item_counts)
        if item_counts is not None:
            # The best place an item ever had, from 0; of item 0, nothing.
            places = torch.full((number, len(item_counts) + 1), self.k_max)
            self.add_state("place", places, dist_reduce_fx="min")
            sums = torch.zeros(number, self.k_max, 3, dtype=torch.float64)
            self.add_state("beyond", sums, dist_reduce_fx="sum")

    @property
    def main(self) -> list[str]:
        """Names of HR, NDCG and MRR of all users at every k, by ranking."""
        return [metric_name(r, "", label) for r in self.rankings for label in self.labels]

    @property
    def names(self) -> list[str]:
        """Of all metrics, groups' among them; a group without samples reports none."""
        beyond = [] if self.features is None else [f"{n}@{k}" for k in self.ks for n in BEYOND]
        pairs = [(group, label) for group in ("", *self.groups) for label in self.labels]
        pairs += [("", label) for label in beyond]
        return [metric_name(ranking, *pair) for ranking in self.rankings for pair in pairs]

    def update(self, rankings: Mapping[str, Any], history_lengths: Tensor) -> None:
        """Add samples.

        Args:
            rankings: name -> greater and ties (B,), see ``target_ranks``, and top (B, k) item ids,
                the best first, 0 for none (``sigma.ranking.scores.Ranking``).
            history_lengths: (B,).
        """
        # Under precision=bf16-true states are cast, too; sums of thousands of users need more.
        if self.gains.device != history_lengths.device:
            self.gains = self.gains.to(history_lengths.device)
            if self.features is not None:
                self.features = self.features.to(history_lengths.device)
        members = [torch.ones_like(history_lengths, dtype=torch.bool)]
        for lower, upper in self.groups.values():
            inside = history_lengths >= (lower or 0)
            members.append(inside if upper is None else inside & (history_lengths < upper))
        member = torch.stack(members)
        self.count += member.sum(1)
        ranks = [rankings[name] for name in self.rankings]
        gained = torch.stack([expected_gains(self.gains, r.greater, r.ties) for r in ranks])
        self.total = self.total.to(gained.dtype) + member.to(gained.dtype) @ gained
        if self.features is None:
            return
        for index, ranking in enumerate(ranks):
            top = ranking.top[:, : self.k_max]
            place = torch.arange(top.shape[1], device=top.device).expand_as(top).flatten()
            self.place[index].scatter_reduce_(0, top.flatten(), place, "amin")
            self.beyond = self.beyond.to(gained.dtype)
            self.beyond[index, : top.shape[1]] += self.features[top].sum(0)

    def compute(self) -> dict[str, Tensor]:
        """``{"ndcg@10": …, "unseen/short/ndcg@10": …}``; a group without samples is left out."""
        result: dict[str, Tensor] = {}
        total, counts = self.total.cpu(), self.count.cpu()  # read at once, not one by one
        means = (total / counts[:, None]).float()
        for ranking, values in zip(self.rankings, means, strict=True):
            for group, size, line in zip(("", *self.groups), counts, values, strict=True):
                if size or not group:
                    names = [metric_name(ranking, group, label) for label in self.labels]
                    result |= dict(zip(names, line, strict=True))
        return result | self._beyond()

    def _beyond(self) -> dict[str, Tensor]:
        """Coverage, novelty and share of the head."""
        result: dict[str, Tensor] = {}
        if self.features is None:
            return result
        places, sums = self.place[:, 1:].cpu(), self.beyond.cpu().cumsum(1)
        for ranking, place, line in zip(self.rankings, places, sums, strict=True):
            for k in self.ks:
                number, bits, head = line[k - 1]
                values = (place < k).double().mean(), bits / number, head / number
                for name, value in zip(BEYOND, values, strict=True):
                    result[f"{ranking}{name}@{k}"] = value.float()
        return result
