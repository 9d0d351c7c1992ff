"""Dropout from random bits; norms and starts of the models, as their authors have them."""

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import nn

from sigma.losses import CrossEntropy
from sigma.models.layers import Dropout
from sigma.models.mamba import Mamba
from tests.models import checks


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


def test_dropout_is_seeded_passes_gradients_and_is_off_in_evaluation() -> None:
    x, dropout = torch.randn(3, 5, 7), Dropout(0.4)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()
    y = dropout(x.requires_grad_())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * x, y)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize("name", checks.TRAINED)
def test_every_norm_has_its_authors_epsilon(name: str) -> None:
    others = {
        "echo": ("forward_norm", "backward_norm"),
        "echo_sigma": ("filter.norm",),
        "esasrec": ("norm",),
    }
    for key, module in checks.build(name).named_modules():
        if isinstance(module, nn.LayerNorm):
            eps = 1e-6 if name.startswith("hstu") else 1e-12
            assert module.eps == (1e-5 if key.endswith(others.get(name, ("-",))) else eps), key


@pytest.mark.parametrize("name", ["bert4rec", "fearec", "linrec", "sasrec"])
def test_starts_as_recboles(name: str) -> None:
    """Maps and tables N(0, 0.02), biases 0, norms 1 and 0, nothing of padding."""
    torch.manual_seed(0)
    model = instantiate(checks.composed(name).model, num_items=500, max_length=50)
    for key, p in model.named_parameters():
        if "norm" in key:
            assert (p == (1.0 if key.endswith("weight") else 0.0)).all(), key
        elif p.dim() == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.05), key
        else:
            assert not p.any(), key
    assert not model.items.weight[0].any()
    if name == "bert4rec":
        assert model.items.weight[501].std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("reinit", [True, False])
@pytest.mark.parametrize("name", ["echo", "echo_sigma", "mamba4rec", "sigma_released"])
def test_start_reaches_into_mamba_as_in_the_authors_code(name: str, reinit: bool) -> None:
    torch.manual_seed(0)
    config = checks.composed(name).model
    model = instantiate(config, num_items=500, reinit_mamba=reinit, _convert_="all")
    blocks = [module for module in model.modules() if isinstance(module, Mamba)]
    within = {module for block in blocks for module in block.modules()}
    for block in blocks:
        steps = F.softplus(block.dt_proj.bias)
        if reinit:
            assert not block.dt_proj.bias.any()
        else:
            assert 0.9e-3 < steps.min() < 0.01 < 0.03 < steps.max() < 0.11
        torch.testing.assert_close(block.A_log[0].exp(), torch.arange(1.0, 33))
        assert block.conv1d.weight.abs().max() > 0.4  # PyTorch's uniform ±1/2
    for key, module in model.named_modules():
        if isinstance(module, nn.Linear):
            near = module.weight.std().item() == pytest.approx(0.02, rel=0.15)
            assert near == (reinit or module not in within), key
            assert module in within or not module.bias.any(), key
    for key, p in model.named_parameters():
        if "gru.weight" in key:
            assert 0.12 < p.abs().max() <= 0.125  # PyTorch's uniform ±1/8
        if key.endswith("filter.weight"):
            assert p.std().item() == pytest.approx(0.02, rel=0.1) or (p == p[0]).all()
    padding = model.items.weight[0]
    assert padding.any() == (name == "sigma_released")
    assert not padding.any() or 0.01 < padding.std() < 0.03


@pytest.mark.parametrize("name", ["echo", "echo_sigma", "fearec", "linrec", "sigma_released"])
def test_recboles_padding_is_drawn_read_and_a_class_of_the_softmax(name: str) -> None:
    """That states are the equations' with any row 0 is shown where the model is."""
    without = checks.built(name, padding_item=False)
    model = checks.built(name, padding_item=True)
    start, others = model.items.weight[0].clone(), dict(without.named_parameters())
    assert 0.005 < start.std() < 0.04
    with torch.no_grad():
        model.items.weight[0] = 0
        for key, p in model.named_parameters():
            assert torch.equal(p, others[key]), key
        model.items.weight[0] = start
    model, without = model.double().eval(), without.double().eval()
    states = checks.last_states(model, *checks.batch())
    assert not torch.allclose(states, checks.last_states(without, *checks.batch()))
    loss = CrossEntropy(torch.ones(checks.K))(states, checks.TARGETS, model.logits)
    p = (states @ model.items.weight.T).softmax(1)  # of classes 0 … K
    torch.testing.assert_close(loss, -p[torch.arange(4), checks.TARGETS].log().mean())
    loss.backward()
    # From the softmax alone: reading it passes none.
    torch.testing.assert_close(model.items.weight.grad[0], (p[:, :1] * states).sum(0) / 4)
    assert model.items.weight.grad[0].any()
