"""RecMamba against its equations in plain loops, its authors' start and their parameter counts."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import Tensor

from sigma.models.mamba import Mamba
from sigma.models.recmamba import RecMamba
from tests.models import checks
from tests.models.slow import mamba


def row_states(model: RecMamba, row: Tensor, length: int) -> list[Tensor]:
    table, places = model.items.weight, model.positions.table.weight
    xs = [math.sqrt(table.shape[1]) * table[row[t]] + places[t] for t in range(length)]
    return mamba(xs, model.mamba)


def test_equals_the_equations_with_gradients() -> None:
    checks.assert_equations(checks.tiny(RecMamba), row_states)


def test_starts_as_the_authors_do() -> None:
    torch.manual_seed(0)
    model = RecMamba(500, 50, functools.partial(Mamba, state_size=32), hidden_size=64)
    assert not model.items.weight[0].any()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        field = parameter[0][0].numel()
        fans = (parameter.shape[0] + parameter.shape[1]) * field
        values = parameter[1:] if name == "items.weight" else parameter
        assert values.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.15), name
    step = F.softplus(model.mamba.dt_proj.bias)
    assert 0.0009 < step.min().item() < 0.01  # vectors keep mamba_ssm's draw
    assert 0.03 < step.max().item() < 0.11
    assert (model.mamba.D == 1).all()


@pytest.mark.parametrize(
    ("name", "max_length", "printed"),
    # Parameters the authors' logs of KuaiRand print, 32,038,725 rows of their item table taken off.
    [
        ("mambarec", 1000, 1_025_284_192),
        ("mambarec", 5000, 1_025_412_192),
        ("moe_matrrec", 1000, 1_025_296_929),
        ("moe_matrrec", 5000, 1_025_424_929),
    ],
)
def test_as_many_parameters_as_authors_logs_print(name: str, max_length: int, printed: int) -> None:
    config = checks.composed(name, f"dataset.max_length={max_length}")
    model = instantiate(config.model, num_items=9, _convert_="all")
    beside_the_table = sum(p.numel() for p in model.parameters()) - model.items.weight.numel()
    assert beside_the_table == printed - 32 * 32_038_725
