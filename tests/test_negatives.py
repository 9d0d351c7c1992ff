"""Negatives: the distribution wanted, exactly; never the target; the same for a seed."""

import math

import pytest
import torch
from torch import Tensor

from sigma.negatives import Negatives
from tests.runs.front_door import Patch

COUNTS = [3, 0, 10, 1, 6, 0]
CASES = [("uniform", 1.0), ("popularity", 1.0), ("popularity", 0.75), ("popularity", 0.0)]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def build(
    counts: list[int], number: int, distribution: str = "uniform", power: float = 1.0
) -> Negatives:
    return Negatives(torch.tensor(counts), number, distribution, power)


def probabilities(counts: list[int], target: int, distribution: str, power: float) -> list[float]:
    """Q(i | not target) of items 1 … K, written once more."""
    weights = []
    for item, count in enumerate(counts, 1):
        weight = 1.0 if distribution == "uniform" else count**power if count else 0.0
        weights.append(0.0 if item == target else weight)
    return [weight / sum(weights) for weight in weights]


def held_to(items: Tensor, want: list[float]) -> None:
    """No share is further off than 4.5 standard errors; what cannot occur never does."""
    for p, share in zip(want, shares(items, len(want)), strict=True):
        assert abs(share - p) <= 4.5 * math.sqrt(p * (1 - p) / items.numel())


def shares(items: Tensor, num_items: int) -> list[float]:
    return (torch.bincount(items.flatten(), minlength=num_items + 1)[1:] / items.numel()).tolist()


@pytest.mark.parametrize(("distribution", "power"), CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_draws_follow_the_distribution(distribution: str, power: float, device: str) -> None:
    number = 20_000
    negatives = build(COUNTS, number, distribution, power).to(device)
    # The first, the last, two never seen, one twice.
    targets = torch.tensor([1, 2, 3, 4, 5, 6, 3], device=device)
    torch.manual_seed(0)
    items = negatives(targets)
    assert (items.shape, items.dtype, items.device) == ((7, number), torch.int64, targets.device)
    every = torch.arange(1, 7, device=device)
    log_q = negatives.log_probability(every.expand(7, 6), targets)
    for target, row, q in zip(targets.tolist(), items, log_q.exp().tolist(), strict=True):
        want = probabilities(COUNTS, target, distribution, power)
        assert q == pytest.approx(want, rel=1e-12)
        held_to(row, want)
    assert (log_q.diagonal() == -math.inf).all()
    assert not torch.equal(items[2], items[6])


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_draws_of_one_target_are_independent(distribution: str) -> None:
    torch.manual_seed(0)
    items = build([2, 5, 2], 2, distribution)(torch.full((20_000,), 2))
    pairs = items[:, 0] * 3 + items[:, 1] - 3  # of items 1 and 3, from 1
    held_to(pairs, [1 / 4, 0, 1 / 4, 0, 0, 0, 1 / 4, 0, 1 / 4])


@pytest.mark.parametrize("power", [1.0, 0.75, 3.0])
@pytest.mark.parametrize("target", [1, 2, 3, 5, 6])
def test_popularity_is_exact(target: int, power: float, monkeypatch: Patch) -> None:
    # Evenly spaced points instead of random ones: every share is right to one point.
    number = 10_000
    grid = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    monkeypatch.setattr(torch, "rand", lambda *_, **__: grid[None])
    items = build(COUNTS, number, "popularity", power)(torch.tensor([target]))
    want = probabilities(COUNTS, target, "popularity", power)
    assert shares(items, 6) == pytest.approx(want, abs=1.01 / number)


@pytest.mark.parametrize(
    "counts",
    [[1, 1], [1, 10**9], [0, 7, 0, 7, 0], [10**9, 1, 10**9, 1, 10**9], list(range(1, 1001))],
    ids=lambda c: f"{c[:5]}",
)
@pytest.mark.parametrize("power", [0.3, 1.0, 4.0])
def test_smallest_and_largest_draws(counts: list[int], power: float, monkeypatch: Patch) -> None:
    edges = torch.tensor([0.0, 2.0**-53, 0.5, 1 - 2.0**-52, 1 - 2.0**-53], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda shape, **_: edges.expand(shape))
    targets = torch.arange(1, len(counts) + 1)
    items = build(counts, 5, "popularity", power)(targets)
    seen = [item for item, count in enumerate(counts, 1) if count]
    for target, row in zip(targets.tolist(), items.tolist(), strict=True):
        others = [item for item in seen if item != target]
        assert row[0] == others[0]
        assert row[-1] == others[-1]
        assert set(row) <= set(others)


def test_a_target_with_nearly_all_the_mass_leaves_the_rest_in_proportion() -> None:
    # (10^6)^4 against 1: beside the others the target's share is 1 to double precision.
    torch.manual_seed(0)
    items = build([1, 10**6, 1], 10_000, "popularity", 4.0)(torch.tensor([2]))
    assert shares(items, 3) == pytest.approx([0.5, 0, 0.5], abs=4.5 * 0.5 / 100)


def test_half_precision_and_checkpoints_leave_it_alone() -> None:
    counts = list(range(1, 2001))
    negatives, targets = build(counts, 50, "popularity", 0.75), torch.arange(1, 2001)
    assert not negatives.state_dict()
    draws = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        draws.append(negatives.to(dtype)(targets))
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        ([1, 2], {"negatives": 0}),
        ([1, 2], {"distribution": "zipf"}),
        ([1, 2], {"distribution": "popularity", "power": -1.0}),
        ([1, 2], {"distribution": "popularity", "power": math.nan}),
        ([1, 2], {"distribution": "popularity", "power": math.inf}),
        ([0, 5, 0], {"distribution": "popularity"}),
        ([1], {"item_counts": torch.tensor([1])}),
    ],
)
def test_impossible_settings(counts: list[int], options: dict) -> None:
    name = list(options)[-1]
    with pytest.raises(ValueError, match=name):
        Negatives(**({"item_counts": torch.tensor(counts), "negatives": 1} | options))
