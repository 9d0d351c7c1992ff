"""Dropout from random bits."""

import pytest
import torch

from sigma.models.layers import Dropout


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
