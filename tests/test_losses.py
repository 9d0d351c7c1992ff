"""Losses against their formulas in plain Python; gradients; what each is known to estimate."""

import itertools
import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor

from sigma.losses import BCE, BPR, GBCE, CrossEntropy, SampledLoss, SampledSoftmax
from sigma.runs.files import CONF

COUNTS = [4, 1, 0, 9, 2, 6, 3]  # K = 7
SAMPLED = [BPR, BCE, GBCE, SampledSoftmax]


def table_scores(states: Tensor, items: Tensor | None = None) -> Tensor:
    """The states are the scores."""
    return states if items is None else states.gather(1, items - 1)


def example(rows: int = 5, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    scores = torch.randn(rows, 7, generator=g, dtype=torch.float64) * spread
    return scores, torch.tensor([1, 7, 4, 3, 4, 2])[torch.arange(rows) % 6]


def negatives_of(loss: SampledLoss, targets: Tensor) -> Tensor:
    """The negatives that a call after seed 0 uses."""
    torch.manual_seed(0)
    return loss.negatives(targets)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# One target's loss by its formula: scores of all items, target, negatives, options.


def bpr(s: list[float], t: int, negatives: list[int], options: dict) -> float:
    return -sum(math.log(sigmoid(s[t - 1] - s[j - 1])) for j in negatives) / len(negatives)


def bce(s: list[float], t: int, negatives: list[int], options: dict) -> float:
    return -math.log(sigmoid(s[t - 1])) - sum(math.log(1 - sigmoid(s[j - 1])) for j in negatives)


def gbce(s: list[float], t: int, negatives: list[int], options: dict) -> float:
    n = len(negatives)
    alpha, calibration = n / (len(s) - 1), options.get("t", 0.75)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    total = math.log(sigmoid(s[t - 1]) ** beta)
    return -(total + sum(math.log(1 - sigmoid(s[j - 1])) for j in negatives)) / (n + 1)


def sampled_softmax(s: list[float], t: int, negatives: list[int], options: dict) -> float:
    weights = COUNTS if options.get("distribution") == "popularity" else [1] * len(s)
    weights = [weight ** options.get("power", 1.0) for weight in weights]
    total = math.exp(s[t - 1])
    for j in negatives:
        q = weights[j - 1] / (sum(weights) - weights[t - 1])
        total += math.exp(s[j - 1]) / (len(negatives) * q if options.get("correction", True) else 1)
    return -s[t - 1] + math.log(total)


BY_HAND = {BPR: bpr, BCE: bce, GBCE: gbce, SampledSoftmax: sampled_softmax}
OPTIONS = [
    *({"negatives": n} for n in (1, 4, 20)),
    {"negatives": 4, "distribution": "popularity"},
    {"negatives": 4, "distribution": "popularity", "power": 0.5},
]
EXTRA = [
    *[(GBCE, {"negatives": 4, "t": t}) for t in (0.0, 1.0)],
    *[(SampledSoftmax, options | {"correction": False}) for options in OPTIONS[2:4]],
]


@pytest.mark.parametrize(
    ("kind", "options"), [*itertools.product(SAMPLED, OPTIONS), *EXTRA], ids=str
)
def test_sampled_losses_by_hand(kind: type, options: dict) -> None:
    loss = kind(torch.tensor(COUNTS), **options)
    scores, targets = example()
    negatives = negatives_of(loss, targets)
    rows = zip(scores.tolist(), targets.tolist(), negatives.tolist(), strict=True)
    want = [BY_HAND[kind](*row, options) for row in rows]
    requests = []

    def logits(states: Tensor, items: Tensor) -> Tensor:
        requests.append(items)
        return table_scores(states, items)

    torch.manual_seed(0)
    got = loss(scores, targets, logits)
    (items,) = requests  # no others are scored
    assert torch.equal(items, torch.cat([targets[:, None], negatives], 1))
    assert got.shape == ()
    assert got.item() == pytest.approx(sum(want) / len(want), rel=1e-10)


def test_cross_entropy_by_hand() -> None:
    scores, targets = example()
    rows = zip(scores.tolist(), targets.tolist(), strict=True)
    want = sum(math.log(sum(map(math.exp, row))) - row[target - 1] for row, target in rows)
    got = CrossEntropy(torch.tensor(COUNTS))(scores, targets, table_scores)
    assert got.shape == ()
    assert got.item() == pytest.approx(want / len(targets), rel=1e-12)


POPULAR = {"negatives": 3, "distribution": "popularity"}
UNCORRECTED = (SampledSoftmax, {"negatives": 3, "correction": False})


@pytest.mark.parametrize(
    ("kind", "options"),
    [(CrossEntropy, {}), *itertools.product(SAMPLED, [POPULAR]), UNCORRECTED],
    ids=str,
)
def test_gradients(kind: type, options: dict) -> None:
    loss = kind(torch.tensor(COUNTS), **options)
    g = torch.Generator().manual_seed(2)
    states = torch.randn(5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    table = torch.randn(7, 3, generator=g, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([1, 7, 4, 3, 4])

    def value(states: Tensor, table: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same negatives every time
        return loss(states, targets, lambda s, i=None: table_scores(s @ table.T, i))

    assert torch.autograd.gradcheck(value, (states, table))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CrossEntropy, {}),
        *itertools.product(SAMPLED, [{"negatives": 1}, {"negatives": 4}]),
        (SampledSoftmax, {"negatives": 4, "distribution": "popularity"}),
    ],
    ids=str,
)
def test_a_target_of_0_is_left_out_of_the_mean(
    kind: type, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stands; it is passed no gradient, not even where its scores are extreme."""
    loss = kind(torch.tensor(COUNTS), **options)
    if kind is not CrossEntropy:  # the same for a target, however many there are
        bought = [item for item, count in enumerate(COUNTS, 1) if count]
        others = [[j for j in bought if j != t][-options["negatives"] :] for t in range(8)]
        monkeypatch.setattr(loss.negatives, "forward", lambda t: torch.tensor(others)[t])
    scores, targets = example(rows=6)
    filled, more = torch.full((10, 7), 300.0).double(), torch.zeros(10, dtype=torch.int64)
    filled[:, ::2] = -300
    places = torch.tensor([0, 2, 3, 4, 7, 8])
    filled[places], more[places] = scores, targets
    scores.requires_grad_()
    filled.requires_grad_()
    want, got = loss(scores, targets, table_scores), loss(filled, more, table_scores)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    (plain,), (grad,) = torch.autograd.grad(want, scores), torch.autograd.grad(got, filled)
    torch.testing.assert_close(grad[places], plain, rtol=1e-12, atol=1e-15)
    grad[places] = 0
    assert not grad.any()


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_gbce_calibrates_the_sigmoid(t: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Item i is the target with probability p_i, and every pair of negatives is as probable as any:
    # with all combinations in the batch, as often as they occur, the loss is its expectation.
    p, n = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64), 2
    rows = [
        (target, *pair)
        for target, times in zip(range(1, 5), (4, 3, 2, 1), strict=True)
        for pair in itertools.product([i for i in range(1, 5) if i != target], repeat=n)
        for _ in range(times)
    ]
    targets, negatives = torch.tensor(rows).split([1, n], dim=1)
    loss = GBCE(torch.ones(4, dtype=torch.int64), n, t=t)
    monkeypatch.setattr(loss.negatives, "forward", lambda targets: negatives)
    alpha = n / 3
    beta = 1 - t + t * alpha
    best = beta * p / (beta * p + alpha * (1 - p))
    if t == 1:
        torch.testing.assert_close(best, p)
    else:
        assert (best > p + 0.01).all()  # overconfident
    scores = best.logit().requires_grad_()
    value = loss(scores.expand(len(rows), 4), targets[:, 0], table_scores)
    (gradient,) = torch.autograd.grad(value, scores)
    torch.testing.assert_close(gradient, torch.zeros(4).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_sampled_softmax_nears_the_softmax(distribution: str) -> None:
    counts = torch.tensor([4, 1, 2, 9, 2, 6, 3])
    scores, targets = example(spread=1.0)
    scores.requires_grad_()
    full = CrossEntropy(counts)(scores, targets, table_scores)
    (want,) = torch.autograd.grad(full, scores)
    errors = []
    for number, correction in ((10, True), (40_000, True), (40_000, False)):
        loss = SampledSoftmax(counts, number, correction, distribution=distribution)
        torch.manual_seed(0)
        (got,) = torch.autograd.grad(loss(scores, targets, table_scores), scores)
        errors.append(((got - want).norm() / want.norm()).item())
    few, many, uncorrected = errors
    assert many < 0.01
    assert few > 5 * many
    assert uncorrected > 0.1


def test_sampled_softmax_has_the_refined_corrections_gradient() -> None:
    # Khrylchenko et al.: (1 - P(target)), held constant, times the logQ loss whose sum is over the
    # negatives alone.
    loss = SampledSoftmax(torch.tensor(COUNTS), 5, distribution="popularity")
    scores, targets = example()
    negatives = negatives_of(loss, targets)
    scores.requires_grad_()
    q = torch.tensor(COUNTS).double()[negatives - 1]
    q = q / (sum(COUNTS) - torch.tensor(COUNTS)[targets - 1, None])
    positive = scores.gather(1, targets[:, None] - 1)[:, 0]
    others = (scores.gather(1, negatives - 1).exp() / q).mean(1)
    weight = 1 - (positive.exp() / (positive.exp() + others)).detach()
    (want,) = torch.autograd.grad((weight * (others.log() - positive)).mean(), scores)
    torch.manual_seed(0)
    (got,) = torch.autograd.grad(loss(scores, targets, table_scores), scores)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [CrossEntropy, *SAMPLED])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_not_lossy(kind: type, dtype: torch.dtype) -> None:
    loss = kind(torch.tensor(COUNTS))
    scores, targets = example()
    torch.manual_seed(0)
    value = loss(scores.to(dtype), targets, table_scores)
    torch.manual_seed(0)
    exact = loss(scores.to(dtype).double(), targets, table_scores)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("kind", [CrossEntropy, *SAMPLED])
def test_extreme_scores_stay_finite(kind: type) -> None:
    loss = kind(torch.tensor([1, 1]), **({} if kind is CrossEntropy else {"negatives": 1}))
    scores = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    value = loss(scores, torch.tensor([1, 1]), table_scores)
    # The first row is as wrong as can be, by 2e4 in all, the second is right. GBCE: n + 1 = 2, and
    # beta = 1 because all items there are, one, were drawn.
    scale = 1 / 2 if kind is GBCE else 1
    assert value.item() == pytest.approx(scale * 2e4 / 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(value, scores)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] < 0 < gradient[0, 1]


def test_every_loss_has_a_yaml_that_builds_it() -> None:
    kinds = set()
    for path in (CONF / "loss").glob("*.yaml"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [f"loss={path.stem}"]).loss
        loss = instantiate(config, item_counts=torch.tensor(COUNTS), _convert_="all")
        kinds.add(type(loss))
        if isinstance(loss, SampledLoss):
            assert loss.negatives.number == config.negatives
            assert loss.negatives.distribution == "uniform"
    assert kinds == {CrossEntropy, *SAMPLED}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *itertools.product([GBCE], [{"t": 1.5}, {"t": -0.1}, {"t": math.nan}]),
        (BPR, {"negatives": 0}),
        (BCE, {"distribution": "zipf"}),
        (SampledSoftmax, {"power": -1.0}),
    ],
    ids=str,
)
def test_impossible_settings(kind: type, options: dict) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        kind(torch.tensor(COUNTS), **options)
