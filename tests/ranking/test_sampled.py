"""Sampled evaluation: which negatives are drawn, for whom, and what their metrics are called."""

import functools

import pytest
import torch
from torch import Tensor

from sigma.datamodules.batches import Batch, FlatSequences
from sigma.errors import UserError
from sigma.losses import CrossEntropy
from sigma.models.base import Model
from sigma.ops import Rows
from sigma.ops.scores import tied_scores
from sigma.ranking.metrics import SAMPLED, target_ranks
from sigma.ranking.sampled import SampledNegatives
from sigma.task import SequenceTask

K = 30
COUNTS = torch.arange(K)  # item 1 was never bought


def flat(users: int = 200) -> FlatSequences:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 12, (users,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = torch.randint(1, K + 1, (int(offsets[-1]),), generator=generator)
    return FlatSequences(items, offsets, 10)


def batch(rows: slice = slice(None)) -> Batch:
    data = flat()
    return data.batch((data.offsets[1:] - 1)[rows], evaluates=True)


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_neither_target_nor_history_is_drawn(distribution: str) -> None:
    data = flat()
    negatives = SampledNegatives(COUNTS, 50, distribution)(batch())
    assert negatives.shape == (200, 50)
    assert negatives.min() >= 1
    assert negatives.max() <= K
    for user, row in enumerate(negatives.tolist()):
        history = data.items[data.offsets[user] : data.offsets[user + 1]].tolist()
        assert not set(row) & set(history)  # the target is the last of it


def test_a_user_is_given_the_same_negatives_whatever_the_batch() -> None:
    sampler = SampledNegatives(COUNTS, 20, seed=1)
    together = sampler(batch())
    apart = torch.cat([sampler(batch(rows=slice(i, i + 7))) for i in range(0, 200, 7)])
    assert torch.equal(together, apart)
    assert not torch.equal(together, SampledNegatives(COUNTS, 20, seed=2)(batch()))
    torch.manual_seed(5)
    assert torch.equal(together, sampler(batch()))
    assert len({tuple(row) for row in together.tolist()}) == 200


def test_the_draws_are_those_of_recorded_rows() -> None:
    for distribution, first in (("uniform", [29, 14, 29, 13]), ("popularity", [22, 18, 11, 28])):
        assert SampledNegatives(COUNTS, 4, distribution, 3)(batch())[0].tolist() == first


def test_distribution_is_the_one_asked_for() -> None:
    # One row, its target item 30; the other 29 are drawn in proportion to the weights.
    data = FlatSequences(torch.tensor([30, 30]), torch.tensor([0, 2]), 5)
    one = data.batch(torch.tensor([1]), evaluates=True)
    for distribution, weights in (("uniform", torch.ones(29)), ("popularity", COUNTS[:29])):
        negatives = SampledNegatives(COUNTS, 60_000, distribution)(one)[0]
        counts = torch.bincount(negatives, minlength=K + 1)[1:K].double()
        expected = weights.double() / weights.sum() * 60_000
        chi = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
        assert chi < 60  # 28 degrees of freedom: 0.04 % of chances lie above
        assert not counts[expected == 0].any()


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_half_precision_draws_the_same(distribution: str) -> None:
    """``trainer.precision=bf16-true`` casts the whole task."""
    counts = torch.arange(1, 12_102)
    data = batch()
    exact = SampledNegatives(counts, 100, distribution)
    assert torch.equal(exact(data), SampledNegatives(counts, 100, distribution).bfloat16()(data))
    assert exact(data).unique().numel() > 5_000


@pytest.mark.parametrize("n", [3, 400])
def test_equal_items_tie_wherever_they_stand(n: int) -> None:
    weight = torch.randn(1, 48).expand(500, 48).contiguous()
    items = torch.randint(1, 501, (64, n))
    scores = tied_scores(torch.randn(64, 48), weight, items)
    greater, ties = target_ranks(scores, torch.ones(64, dtype=torch.int64))
    assert not greater.any()
    assert (ties == n - 1).all()


class Scores(Model):
    """Scores item j by j, whatever the history."""

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        return torch.zeros(len(places), 1)

    def logits(self, states: Tensor, items: Tensor | None = None) -> Tensor:
        if items is None:
            return torch.arange(1.0, K + 1).expand(len(states), K)
        return items.float()


def test_ranks_count_the_drawn_items_above_the_target() -> None:
    sampler = SampledNegatives(COUNTS, 15)
    adam, options = functools.partial(torch.optim.Adam, lr=1.0), {"groups": {"short": [0, 5]}}
    task = SequenceTask(Scores(), adam, CrossEntropy(COUNTS), sampled=sampler, **options)
    data = batch()
    ranks = task.evaluation_step("test", data).rankings[SAMPLED]
    negatives = sampler(data).tolist()
    pairs = zip(negatives, data.targets.tolist(), strict=True)
    above = [sum(item > target for item in row) for row, target in pairs]
    assert ranks.greater.tolist() == above
    assert not ranks.ties.any()
    metrics = task.ranking("test").compute()
    assert metrics["sampled_hr@10"].item() == pytest.approx(sum(a < 10 for a in above) / 200)
    assert "short/sampled_ndcg@5" in metrics
    assert all("sampled_" in name for name in metrics)  # never to be taken for full ranking


def test_impossible_settings() -> None:
    for options in ({"distribution": "zipf"}, {"number": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SampledNegatives(COUNTS, **options)
    data = FlatSequences(torch.tensor([1, 2, 1]), torch.tensor([0, 3]), 5)
    with pytest.raises(UserError, match="too few items to draw"):
        SampledNegatives(torch.ones(2), 5)(data.batch(torch.tensor([2]), evaluates=True))
