"""SIGMA against its equations, written once more in plain loops; flip and ablations."""

import pytest
import torch
from torch import Tensor

from sigma.models.sigma import Sigma, SigmaLayer
from tests.models.checks import assert_equations, tiny
from tests.models.slow import conv, feed_forward, gelu, gru, linear, mamba, norm


def layer_by_equations(h: list[Tensor], p: SigmaLayer, r: int) -> list[Tensor]:
    n = max(len(h) - r, 0)
    hf = list(reversed(h[:n])) + h[n:] if p.partial_flip else h  # eq. 2
    m, mf = mamba(h, p.mamba), mamba(hf, p.flipped_mamba or p.mamba)
    if p.gate is not None:
        gate = p.gate

        def gates(xs: list[Tensor]) -> list[Tensor]:  # eq. 4-6
            inner = conv([linear(x, gate.inner) for x in xs], gate.conv.conv, True)
            g = [linear(x, gate.outer) for x in inner]
            return [x * torch.sigmoid(x) + torch.sigmoid(x) for x in g]

        m = [g * x + x for g, x in zip(gates(h), m, strict=True)]  # eq. 3, with the residual
        mf = [g * x + x for g, x in zip(gates(hf), mf, strict=True)]
    z = [p.mix_mamba * (a + b) for a, b in zip(m, mf, strict=True)]  # eq. 8
    if p.gru is not None:
        f = gru(conv(h, p.conv.conv, False), p.gru, bias=True)  # eq. 7
        z = [a + p.mix_gru * b for a, b in zip(z, f, strict=True)]
    out = []
    for x, z_t in zip(h, z, strict=True):
        mixed = norm(linear(z_t, p.mixed) + linear(x, p.shortcut), p.mixed_norm)  # eq. 9
        out.append(feed_forward(mixed, p, gelu))  # eq. 10
    return out


def row_states(model: Sigma, row: Tensor, length: int, r: int) -> list[Tensor]:
    h = [norm(model.items.weight[i], model.norm) for i in row[:length]]
    for layer in model.layers:
        h = layer_by_equations(h, layer, r)
    return h


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"num_layers": 2}, {"r": 0}, {"r": 50}),
        *({part: False} for part in ("shared_mamba", "partial_flip", "gate", "gru")),
    ],
    ids=str,
)
def test_equals_the_equations_with_gradients(options: dict) -> None:
    model = tiny(Sigma, **{"r": 2} | options)
    assert_equations(model, row_states, options.get("r", 2))
