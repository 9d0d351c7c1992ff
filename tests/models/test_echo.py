"""EchoMamba4Rec against its equations: explicit Fourier sums, plain loops, whole padded rows."""

import math

import pytest
import torch
from torch import Tensor

from sigma.models.echo import EchoLayer, EchoMamba4Rec, FourierFilter
from sigma.models.mamba import Mamba
from tests.models import checks
from tests.models.checks import MAMBA, K, assert_same_scores, rows, shake
from tests.models.slow import embedded, linear, mamba, norm


def build(max_length: int = 7, **options: object) -> EchoMamba4Rec:
    torch.manual_seed(0)
    settings = {"hidden_size": 6, "dropout": 0.0} | options
    return EchoMamba4Rec(K, max_length, MAMBA, **settings).double()  # type: ignore[arg-type]


# --- the equations, one row at a time, padding included because the model reads it ---


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


def by_equations(model: EchoMamba4Rec, items: Tensor, lengths: Tensor) -> Tensor:
    """States at every real position, row by row."""
    out = []
    for row, length in zip(items, lengths.tolist(), strict=True):
        xs = [norm(embedded(model.items, i), model.norm) for i in row]
        for layer in model.layers:
            assert isinstance(layer, EchoLayer)
            xs = layer_by_equations(xs, layer)
        out.extend(xs[:length])
    return torch.stack(out)


@pytest.mark.parametrize("max_length", [7, 8], ids=["odd", "even"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_equals_the_equations_with_gradients(max_length: int, num_layers: int) -> None:
    model = build(max_length, num_layers=num_layers)
    shake(model)
    items, lengths = rows(max_length)
    want = by_equations(model, items, lengths)
    assert_same_scores(model, items, lengths, want)


def test_start_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    model = EchoMamba4Rec(num_items=500, max_length=50, mamba=Mamba)
    layer = model.layers[0]
    assert layer.filter.weight.shape == (26, 64, 2)
    for drawn in (layer.filter.weight, layer.widen.weight, layer.forward_mamba.x_proj.weight):
        assert abs(drawn.std().item() - 0.02) < 0.002
    assert not layer.backward_mamba.dt_proj.bias.any()
    own = EchoMamba4Rec(num_items=500, max_length=50, mamba=Mamba, reinit_mamba=False).layers[0]
    assert own.forward_mamba.dt_proj.bias.max() < -2
    assert abs(own.widen.weight.std().item() - 0.02) < 0.002


def test_as_many_places_as_rows_but_not_one_each_is_nothing_rather_than_wrong() -> None:
    model = build()
    items, among = checks.packed_rows(*checks.rows())
    ends = among.offsets[1:] - 1
    assert model(items, among, ends).isfinite().all()
    assert model(items, among, torch.tensor([0, 1, 7, 8, 10])).isnan().all()
