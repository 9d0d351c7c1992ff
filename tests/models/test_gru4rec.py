"""GRU4Rec against its equations in plain loops; its start."""

import math

import pytest
import torch
from torch import Tensor

from sigma.models.gru4rec import GRU4Rec
from tests.models.checks import assert_equations, tiny
from tests.models.slow import gru, linear


def row_states(model: GRU4Rec, row: Tensor, length: int, num_layers: int) -> list[Tensor]:
    x = [model.items.weight[i] for i in row[:length]]
    for layer in range(num_layers):
        x = gru(x, model.gru, bias=False, layer=layer)
    return [linear(x_t, model.out) for x_t in x]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_equals_the_equations_with_gradients(num_layers: int) -> None:
    model = tiny(GRU4Rec, std=0.6, gru_size=5, num_layers=num_layers)
    assert_equations(model, row_states, num_layers)


def test_starts_as_recboles() -> None:
    """Table Xavier normal, the first GRU layer Xavier uniform, the rest as torch draws it."""
    torch.manual_seed(0)
    model = GRU4Rec(num_items=2000, hidden_size=64, gru_size=128, num_layers=2)
    assert not any("bias" in name for name, _ in model.gru.named_parameters())
    table = model.items.weight[1:]
    assert table.std().item() == pytest.approx(math.sqrt(2 / (2001 + 64)), rel=0.02)
    assert (table.abs() > 2.5 * table.std()).any()  # not uniform
    bounds = {
        "gru.weight_ih_l0": math.sqrt(6 / (3 * 128 + 64)),
        "gru.weight_hh_l0": math.sqrt(6 / (3 * 128 + 128)),
        **dict.fromkeys(("gru.weight_ih_l1", "gru.weight_hh_l1"), 128**-0.5),
        **dict.fromkeys(("out.weight", "out.bias"), 128**-0.5),
    }
    parameters = dict(model.named_parameters())
    assert set(parameters) == {"items.weight", *bounds}
    for name, bound in bounds.items():
        largest = parameters[name].abs().max().item()
        assert 0.95 * bound < largest <= bound, name
