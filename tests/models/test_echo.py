"""EchoMamba4Rec against its equations: explicit Fourier sums, plain loops, whole padded rows."""

import pytest
import torch
from torch import Tensor

from sigma.models.echo import EchoLayer, EchoMamba4Rec, FourierFilter
from tests.models.checks import assert_equations, ends, five, packed, tiny
from tests.models.slow import embedded, fourier_filter, linear, mamba, norm


def filtered(xs: list[Tensor], layer: FourierFilter) -> list[Tensor]:
    n = len(xs)
    filters = [layer.weight[k].unbind(-1) for k in range(n // 2 + 1)]
    # A real signal's upper half mirrors the lower one.
    filters += [(filters[n - k][0], -filters[n - k][1]) for k in range(n // 2 + 1, n)]
    return [norm(y + x, layer.norm) for x, y in zip(xs, fourier_filter(xs, filters), strict=True)]


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
