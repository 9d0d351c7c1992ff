"""The SIGMA authors' ECHO against its equations: explicit Fourier sums, loops, padded rows."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.models.echo_sigma import EchoSigma, EchoSigmaLayer, HiddenFilter
from tests.models.checks import assert_equations, five, last_states, packed, shake, tiny
from tests.models.slow import (
    embedded,
    feed_forward,
    fourier_filter,
    gelu,
    linear,
    mamba,
    norm,
    silu,
)


def filtered(x: Tensor, layer: HiddenFilter, cutoff: float) -> Tensor:
    """Over the hidden dimensions, whatever passes the cutoff added once more."""
    size, filters = len(x), []
    for k in range(size):
        frequency = min(k, size - k) / size  # its size; the upper half is negative
        a, b = layer.weight[k].unbind()
        filters.append((a + (1.0 if frequency >= cutoff else 0.0), b))
    return norm(torch.stack(fourier_filter(list(x), filters)) + x, layer.norm)


def layer_by_equations(xs: list[Tensor], p: EchoSigmaLayer, cutoff: float) -> list[Tensor]:
    hs = [filtered(x, p.filter, cutoff) for x in xs]
    hs = [linear(h, p.value_in) * silu(linear(h, p.gate_in)) for h in hs]
    out = []
    for triple in zip(
        mamba(hs, p.mamba), mamba(hs[::-1], p.mamba), mamba(xs, p.mamba), strict=True
    ):
        y = norm(triple[0] + triple[1] + triple[2], p.mamba_norm)
        a = linear(y, p.value_out)
        y = norm(a * silu(linear(y, p.gate_out)) + a + y, p.norm)
        out.append(feed_forward(y, p.feed_forward, gelu))
    return out


def row_states(model: EchoSigma, row: Tensor, length: int, cutoff: float) -> list[Tensor]:
    xs = [norm(embedded(model.items, i), model.norm) for i in row]
    for layer in model.layers:
        assert isinstance(layer, EchoSigmaLayer)
        xs = layer_by_equations(xs, layer, cutoff)
    return xs[:length]


@pytest.mark.parametrize(
    "options",
    [{}, {"hidden_size": 5}, {"num_layers": 2}, {"cutoff": 0.3}, {"hidden_size": 5, "cutoff": 0.3}],
    ids=str,
)
def test_equals_the_equations_with_gradients(options: dict) -> None:
    assert_equations(tiny(EchoSigma, **options), row_states, options.get("cutoff", 0.001))


def test_their_cutoff_has_no_effect_and_the_filter_starts_as_nothing() -> None:
    scores = {}
    for cutoff in (0.0, 0.001, 1 / 6, 0.3):
        model = tiny(EchoSigma, std=0.0, cutoff=cutoff)
        layer = model.layers[0].filter
        states = F.layer_norm(torch.randn(2, 3, 6, dtype=torch.float64), (6,), eps=1e-12)
        if cutoff < 0.3:
            torch.testing.assert_close(layer(states), states, rtol=0, atol=1e-4)  # eps of the norm
        else:
            assert (layer(states) - states).abs().max() > 0.01
        shake(model)
        scores[cutoff] = model.logits(last_states(model, *packed(*five())))
    torch.testing.assert_close(scores[0.001], scores[0.0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores[1 / 6], scores[0.0], rtol=1e-10, atol=1e-10)
    assert (scores[0.3] - scores[0.0]).abs().max() > 0.01


def test_the_reversed_direction_of_a_short_history_reads_padding_alone() -> None:
    model = tiny(EchoSigma)
    read: list[Tensor] = []
    model.layers[0].mamba.register_forward_hook(lambda m, a, out: read.append(out))
    for length, blind in ((1, True), (3, True), (4, False), (7, False)):
        items = torch.zeros(2, 7, dtype=torch.long)
        items[0, :length] = torch.arange(1, length + 1)
        items[1, :length] = torch.arange(5, length + 5)
        last_states(model, *packed(items, torch.tensor([length, length])))
        one, other = read[-2]  # the second of the three
        difference = (one - other).abs().max().item()
        assert difference < 1e-12 if blind else difference > 1e-3, length
