"""The tied head with temperature and lengths of 1, against sums in plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.losses import BCE, BPR, GBCE, CrossEntropy, SampledSoftmax
from sigma.models.layers import TiedItems
from sigma.ops.scores import SHORTEST, TiedScores
from tests.models import checks

K, D, M = 7, 4, 5
HEADS = [(0.05, True), (0.2, None), (None, True), (None, None)]
TARGETS = torch.tensor([3, 7, 1, 1, 6])


def leaves() -> list[Tensor]:
    """States, table, bias and the table of other classes."""
    g = torch.Generator().manual_seed(0)
    shapes = ((M, D), (K, D), (K,), (2, D))
    return [
        torch.randn(s, generator=g, dtype=torch.float64).mul_(0.5).requires_grad_() for s in shapes
    ]


def slow(
    x: list[Tensor], e: list[Tensor], b: list[Tensor], temperature: float, unit: bool
) -> Tensor:
    """One score at a time, (M, K)."""

    def length(v: Tensor) -> Tensor | float:
        return v.pow(2).sum().sqrt() if unit else 1.0

    return torch.stack(
        [
            torch.stack(
                [
                    ((x_m * e_k).sum() / (length(x_m) * length(e_k)) + b_k) / temperature
                    for e_k, b_k in zip(e, b, strict=True)
                ]
            )
            for x_m in x
        ]
    )


def assert_same_with_gradients(got: Tensor, want: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    weight = torch.cos(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    pairs = zip(
        *(torch.autograd.grad((y * weight).sum(), inputs) for y in (got, want)), strict=True
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_scores_are_those_of_the_loops(head: tuple[float | None, bool | None]) -> None:
    """Of all items, and of some by both ways."""
    x, e, b, _ = inputs = leaves()
    got = TiedScores(e, b).shaped(*head)
    want = slow([*x], [*e], [*b], head[0] or 1.0, bool(head[1]))
    assert_same_with_gradients(got(x), want, inputs[:3])
    want = slow([*x], [*e], [*b], head[0] or 1.0, bool(head[1]))
    some = torch.tensor([[1, 7, 3], [2, 2, 1], [5, 6, 7], [4, 3, 2], [7, 1, 1]])
    for items in (some, some[:, :1]):
        torch.testing.assert_close(got(x, items), want.gather(1, items - 1))


@pytest.mark.parametrize("kind", [CrossEntropy, BPR, BCE, GBCE, SampledSoftmax])
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_every_loss_sees_these_scores(
    kind: type, head: tuple[float | None, bool | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, e, b, others = leaves()
    softmax = kind is CrossEntropy
    loss = kind(torch.ones(K), **({} if softmax else {"negatives": 3}))
    used = [x, e, others] if softmax else [x, e, b]
    shape = head[0] or 1.0, bool(head[1])

    def plain(states: Tensor, items: Tensor | None = None) -> Tensor:
        scores = slow([*states], [*e], [*b], *shape)
        return scores if items is None else scores.gather(1, items - 1)

    torch.manual_seed(0)
    if softmax:  # other classes beside the items, and no bias
        table = [*e, *others]
        want = F.cross_entropy(slow([*x], table, [torch.tensor(0.0)] * 9, *shape), TARGETS - 1)
        monkeypatch.setattr(TiedScores, "__call__", None)  # it would hold all scores
        got = loss(x, TARGETS, TiedScores(e, others=others).shaped(*head))
    else:
        want = loss(x, TARGETS, plain)
        torch.manual_seed(0)
        got = loss(x, TARGETS, TiedScores(e, b).shaped(*head))
    assert_same_with_gradients(got, want, used)


def test_short_vectors_stay_finite() -> None:
    x = torch.zeros(2, D, dtype=torch.float64, requires_grad=True)
    e = torch.full((K, D), SHORTEST / 100, dtype=torch.float64)
    got = TiedScores(e).shaped(0.05, True)(x)
    (gradient,) = torch.autograd.grad(got.sum(), x)
    assert got.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", checks.TRAINED)
def test_every_tied_model_has_the_options(name: str) -> None:
    """But FEARec, whose temperature is its contrast's."""
    fearec = name.startswith("fearec")
    options = {"normalize": True} | ({} if fearec else {"temperature": 0.25})
    model = checks.build(name, **options).double()
    if not isinstance(model, TiedItems):
        return
    checks.shake(model, 0.1)
    states = checks.last_states(model, *checks.batch())
    scores = model.logits(states)
    bias = getattr(model, "bias", torch.zeros(checks.K))
    for m, k in ((0, 0), (1, 5), (3, checks.K - 1)):
        x, e = states[m], model.items.weight[k + 1]
        cosine = (x @ e).item() / math.sqrt((x @ x).item() * (e @ e).item())
        want = (cosine + bias[k].item()) / (1 if fearec else 0.25)
        assert scores[m, k].item() == pytest.approx(want, rel=1e-9)
