"""RecMamba against its equations in plain loops, its authors' start and their parameter counts."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from sigma.errors import UserError
from sigma.models.mamba import Mamba
from sigma.models.recmamba import RecMamba
from tests.models.checks import (
    MAMBA,
    K,
    assert_same_scores,
    composed,
    every_state,
    packed_rows,
    parameters_beside_the_table,
    rows,
    shake,
)
from tests.models.slow import mamba


def build(**options: object) -> RecMamba:
    torch.manual_seed(0)
    settings = {"hidden_size": 6, "max_length": 40, "dropout": 0.0} | options
    return RecMamba(num_items=K, mamba=MAMBA, **settings).double()  # type: ignore[arg-type]


def by_equations(model: RecMamba, items: Tensor, lengths: Tensor) -> Tensor:
    out = []
    table, places = model.items.weight, model.positions.table.weight
    for row, length in zip(items, lengths.tolist(), strict=True):
        xs = [math.sqrt(table.shape[1]) * table[row[t]] + places[t] for t in range(length)]
        out.extend(mamba(xs, model.mamba))
    return torch.stack(out)


def test_equals_the_equations_with_gradients() -> None:
    model = build()
    shake(model)
    items, lengths = rows()
    want = by_equations(model, items, lengths)
    assert_same_scores(model, items, lengths, want)


def test_positions_count_from_the_first_item_kept() -> None:
    model = build(max_length=7)
    items, lengths = rows()
    flat, among = packed_rows(items, lengths)
    before = every_state(model, items, lengths)
    with torch.no_grad():
        model.positions.table.weight[5:] += 1
    after = every_state(model, items, lengths)
    early = among.positions(len(flat)) < 5
    assert torch.equal(before[early], after[early])  # a short row never meets the last positions
    assert not torch.allclose(before[5], after[5])
    with pytest.raises(UserError, match=r"8 positions, the model 7.*max_length"):
        every_state(model, F.pad(items, (0, 1)), lengths)


def test_starts_as_the_authors_do() -> None:
    torch.manual_seed(0)
    model = RecMamba(500, 50, functools.partial(Mamba, state_size=32), hidden_size=64)
    assert not model.items.weight[0].any()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        field = parameter[0][0].numel()
        fans = (parameter.shape[0] + parameter.shape[1]) * field
        drawn = parameter[1:] if name == "items.weight" else parameter
        assert drawn.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.15), name
    step = F.softplus(model.mamba.dt_proj.bias)
    assert 0.0009 < step.min().item() < 0.01  # vectors keep mamba_ssm's draw
    assert 0.03 < step.max().item() < 0.11
    assert (model.mamba.D == 1).all()


# --- the settings, as a run composes them ---


@pytest.mark.parametrize(
    ("name", "size", "dropout", "batch", "lr"),
    [("recmamba", 64, 0.2, 256, 4e-4), ("mambarec", 32, 0.5, 16, 5e-4)],
)
def test_settings_are_those_the_authors_ran(
    name: str, size: int, dropout: float, batch: int, lr: float
) -> None:
    config = composed(name, "dataset=beauty")
    assert OmegaConf.select(config, "objective._target_").endswith(".AllPositions")
    assert (config.model.name, config.model.hidden_size) == (name, size)
    assert (config.model.dropout, config.dataset.batch_size) == (dropout, batch)
    assert (config.task.optimizer.lr, config.model.max_length) == (lr, 50)
    # What the command line says holds.
    assert composed(name, "dataset.batch_size=7").dataset.batch_size == 7


@pytest.mark.parametrize(
    ("max_length", "printed"),
    # Parameters the authors' logs of KuaiRand print, 32,038,725 rows of their item table taken off.
    [(1000, 1_025_284_192), (2000, 1_025_316_192), (5000, 1_025_412_192)],
)
def test_mambarec_has_as_many_parameters_as_its_authors_logs_print(
    max_length: int, printed: int
) -> None:
    config = composed("mambarec", f"dataset.max_length={max_length}")
    assert parameters_beside_the_table(config) == printed - 32 * 32_038_725
