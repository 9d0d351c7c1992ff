"""Dropout from random bits, attention on its way with dropout, and states at one column."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigma.models.layers import Dropout, at
from sigma.models.transformer import attend, real_keys


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
    kept = (Dropout(0.5)(torch.ones(200_000)) > 0).double()
    for distance in (1, 2, 3, 4, 8):  # four elements share one word of random bits
        both = (kept[:-distance] * kept[distance:]).mean().item()
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


@pytest.mark.parametrize("masked", [False, True])
def test_attention_without_a_kernel_equals_torchs(
    masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    visible = real_keys(torch.tensor([5, 2, 1]), 5) if masked else None
    # A dropout that would be in force but drops nothing takes the way of training.
    monkeypatch.setattr(Dropout, "forward", lambda self, x: x)
    got = attend(q, k, v, visible, Dropout(0.5))
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
    torch.testing.assert_close(got, wanted)
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), (q, k, v)),
        torch.autograd.grad((wanted * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_states_at_one_column() -> None:
    states, columns = torch.randn(4, 6, 3), torch.tensor([0, 5, 2, 2])
    assert torch.equal(at(states, columns), states[torch.arange(4), columns][:, None])
    assert at(states, None) is states


def test_no_model_has_pytorchs_own_dropout() -> None:
    """It would be most of a step's time on the CPU."""
    from tests.models.test_every_model import MODELS, build

    for name in MODELS:
        for module in build(name).modules():
            assert type(module) is not nn.Dropout, name
