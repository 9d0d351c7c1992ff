"""RecMamba against its equations in plain loops, its authors' start and their parameter counts."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.models.mamba import Mamba
from sigma.models.recmamba import RecMamba
from tests.models import checks
from tests.models.slow import mamba


def build(**options: object) -> RecMamba:
    torch.manual_seed(0)
    settings = {"hidden_size": 6, "max_length": 40, "dropout": 0.0} | options
    return RecMamba(num_items=checks.K, mamba=checks.MAMBA, **settings).double()  # type: ignore[arg-type]


def row_states(model: RecMamba, row: Tensor, length: int) -> list[Tensor]:
    table, places = model.items.weight, model.positions.table.weight
    xs = [math.sqrt(table.shape[1]) * table[row[t]] + places[t] for t in range(length)]
    return mamba(xs, model.mamba)


def test_equals_the_equations_with_gradients() -> None:
    model = build()
    checks.shake(model)
    checks.assert_equations(model, row_states)


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


# --- the settings, as a run composes them ---


@pytest.mark.parametrize(
    ("max_length", "printed"),
    # Parameters the authors' logs of KuaiRand print, 32,038,725 rows of their item table taken off.
    [(1000, 1_025_284_192), (2000, 1_025_316_192), (5000, 1_025_412_192)],
)
def test_mambarec_has_as_many_parameters_as_its_authors_logs_print(
    max_length: int, printed: int
) -> None:
    config = checks.composed("mambarec", f"dataset.max_length={max_length}")
    assert checks.parameters_beside_the_table(config) == printed - 32 * 32_038_725
