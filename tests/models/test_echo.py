"""EchoMamba4Rec against its equations: explicit Fourier sums, plain loops, whole padded rows."""

import math

import pytest
import torch
from torch import Tensor

from sigma.models.echo import EchoLayer, EchoMamba4Rec, FourierFilter
from tests.models.checks import assert_equations, ends, five, packed, tiny
from tests.models.slow import embedded, linear, mamba, norm


def filtered(xs: list[Tensor], layer: FourierFilter) -> list[Tensor]:
    """Discrete Fourier sums term by term: forward, times the filter, back, real part."""
    n = len(xs)
    spectrum = []  # (real, imaginary) of frequencies 0 … n - 1
    for k in range(n):
        re = sum(x * math.cos(2 * math.pi * k * t / n) for t, x in enumerate(xs))
        im = sum(-x * math.sin(2 * math.pi * k * t / n) for t, x in enumerate(xs))
        if k <= n // 2:
            a, b = layer.weight[k].unbind(-1)
        else:  # a real signal's upper half mirrors the lower one
            a, b = layer.weight[n - k, :, 0], -layer.weight[n - k, :, 1]
        spectrum.append((re * a - im * b, re * b + im * a))
    out = []
    for t, x in enumerate(xs):
        y = torch.zeros_like(x)
        for k, (re, im) in enumerate(spectrum):
            angle = 2 * math.pi * k * t / n
            y = y + (re * math.cos(angle) - im * math.sin(angle)) / n
        out.append(norm(y + x, layer.norm))
    return out


def layer_by_equations(xs: list[Tensor], p: EchoLayer) -> list[Tensor]:
    xs = filtered(xs, p.filter)
    forward = mamba(xs, p.forward_mamba)
    backward = mamba(xs[::-1], p.backward_mamba)[::-1]
    out = []
    for x, f, b in zip(xs, forward, backward, strict=True):
        both = norm(f + x, p.forward_norm) + norm(b + x, p.backward_norm)
        v, g = linear(both, p.widen).chunk(2)
        out.append(norm(linear(v / (1 + (-g).exp()), p.narrow) + both, p.norm))
    return out


def row_states(model: EchoMamba4Rec, row: Tensor, length: int) -> list[Tensor]:
    xs = [norm(embedded(model.items, i), model.norm) for i in row]
    for layer in model.layers:
        assert isinstance(layer, EchoLayer)
        xs = layer_by_equations(xs, layer)
    return xs[:length]


@pytest.mark.parametrize("max_length", [7, 8], ids=["odd", "even"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_equals_the_equations_with_gradients(max_length: int, num_layers: int) -> None:
    model = tiny(EchoMamba4Rec, max_length=max_length, num_layers=num_layers)
    assert_equations(model, row_states, padded_rows=five(max_length))


def test_as_many_places_as_rows_but_not_one_each_is_nothing_rather_than_wrong() -> None:
    model = tiny(EchoMamba4Rec)
    items, among = packed(*five())
    assert model(items, among, ends(among)).isfinite().all()
    assert model(items, among, torch.tensor([0, 1, 7, 8, 10])).isnan().all()
