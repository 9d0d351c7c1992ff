"""MoEMaTrRec against its equations in plain loops; what the leak does; its authors' start."""

import functools
import logging
import math

import pytest
import torch
from torch import Tensor

from sigma.datamodules.objectives import AllPositions
from sigma.errors import UserError
from sigma.models.mamba import Mamba
from sigma.models.moe_matrrec import MoEMaTrRec
from tests.models.checks import assert_equations, tiny
from tests.models.slow import attention, embedded, feed_forward, linear, mamba, relu

LEAK = pytest.mark.parametrize("leak", [False, True], ids=["honest", "leak"])


def row_states(model: MoEMaTrRec, row: Tensor, length: int, heads: int, leak: bool) -> list[Tensor]:
    places = model.positions.table.weight
    ids = row if leak else row[:length]
    scale = math.sqrt(places.shape[1])
    xs = [scale * embedded(model.items, i) + places[t] for t, i in enumerate(ids)]
    attended = attention(xs, model.attention, heads, causal=not leak)
    scanned, out = mamba(xs, model.mamba), []
    for t in range(length):
        seen = xs if leak else xs[: t + 1]
        g = 1 / (1 + torch.exp(-linear(sum(seen) / len(seen), model.gate)))
        c = g * scanned[t] + (1 - g) * attended[t]
        out.append(feed_forward(c, model.feed_forward, relu))
    return out


@LEAK
@pytest.mark.parametrize("heads", [1, 2])
def test_equals_the_equations_with_gradients(leak: bool, heads: int) -> None:
    model = tiny(MoEMaTrRec, leak=leak, num_heads=heads)
    assert_equations(model, row_states, heads, leak)


@LEAK
def test_leak_warns_once_and_passes_for_all_positions(
    leak: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = tiny(MoEMaTrRec, leak=leak)
    warnings = [r.getMessage() for r in caplog.records if r.name == "sigma.models.moe_matrrec"]
    assert len(warnings) == (1 if leak else 0)
    assert all("sees the items it must predict" in w for w in warnings)
    assert model.leaks_on_purpose is leak
    AllPositions().check(model)
    if leak:
        model.leaks_on_purpose = False
        with pytest.raises(UserError, match="is not causal"):
            AllPositions().check(model)


def test_attention_starts_as_torchs_does_under_xavier() -> None:
    torch.manual_seed(0)
    model = MoEMaTrRec(500, 50, functools.partial(Mamba, state_size=8), hidden_size=64)
    p = model.attention
    for layer in (p.query, p.key, p.value):  # one matrix (3 D, D) in torch
        assert layer.weight.std().item() == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.05)
    assert p.out.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert not any(layer.bias.any() for layer in (p.query, p.key, p.value, p.out))
