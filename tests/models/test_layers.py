"""Dropout from random bits, attention as torch has it, states at places, the convolution."""

import pytest
import torch
import torch.nn.functional as F

from sigma.models.layers import CausalConv1d, Dropout, at
from sigma.ops import attend, places_of, rows_of
from tests.models.checks import real


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_dropout_keeps_rate_and_mean(p: float, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    n = 400_003
    y = Dropout(p)(torch.ones(n, dtype=kind))
    share = (y == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / n) ** 0.5
    tolerance = 2**-8 if kind == torch.bfloat16 else 1e-3
    assert y.max().item() == pytest.approx(1 / (1 - round(p * 2**16) / 2**16), rel=tolerance)
    assert y.double().mean().item() == pytest.approx(1, abs=0.01 if p < 0.9 else 0.3)


def test_dropout_draws_each_element_by_itself() -> None:
    torch.manual_seed(0)
    mask = (Dropout(0.5)(torch.ones(200_000)) > 0).double()
    for distance in (1, 2, 3, 4, 8):  # four elements share one word of random bits
        both = (mask[:-distance] * mask[distance:]).mean().item()
        assert both == pytest.approx(0.25, abs=0.006)


def test_dropout_is_seeded_and_off_in_evaluation() -> None:
    x, dropout = torch.randn(3, 5, 7), Dropout(0.4)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
    assert torch.equal(dropout.eval()(x), x)


def test_the_gradient_of_dropout_goes_through_what_is_kept() -> None:
    x = torch.randn(50, 4, requires_grad=True)
    y = Dropout(0.3)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)


LENGTHS = torch.tensor([5, 2, 1])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("some", [[*range(8)], [0, 3, 7], [1, 2, 4, 5, 6]], ids=str)
def test_attention_equals_torchs(some: list[int], causal: bool) -> None:
    """On rows end to end, of some queries, what torch's has on padded rows."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 5, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    visible = (torch.arange(5) < LENGTHS[:, None])[:, None, None]
    if causal:
        visible = visible & torch.ones(5, 5, dtype=torch.bool).tril()
    places = torch.tensor(some)
    queries, keys, values = (real(x, LENGTHS) for x in (q, k, v))
    got = attend(queries[places], keys, values, rows_of(LENGTHS), places, causal)
    padded = (x.transpose(1, 2) for x in (q, k, v))
    want = F.scaled_dot_product_attention(*padded, attn_mask=visible).transpose(1, 2)
    want = real(want, LENGTHS)[places]
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), (q, k, v)),
        torch.autograd.grad((want * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("depthwise", [False, True])
def test_convolution_looks_back_within_its_row(depthwise: bool) -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(4, 3, depthwise=depthwise).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    got = layer(real(x, LENGTHS), rows_of(LENGTHS))
    padded = F.pad(x.mT, (2, 0))
    want = real(F.conv1d(padded, *layer.conv.parameters(), groups=layer.conv.groups).mT, LENGTHS)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(got)
    tensors = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), tensors),
        torch.autograd.grad((want * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_states_at_places() -> None:
    states, index = torch.randn(6, 3), torch.tensor([0, 2, 5])
    assert torch.equal(at(states, places_of(index, 6)), states[index])
    assert at(states, None) is states
