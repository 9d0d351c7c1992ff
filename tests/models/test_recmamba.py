"""RecMamba against its equations in plain loops, its authors' start and their parameter counts."""

import functools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sigma.errors import UserError
from sigma.models.mamba import Mamba
from sigma.models.recmamba import RecMamba
from tests.models.test_sigma import mamba

CONF = Path(__file__).parents[2] / "conf"


def build(seed: int = 0, **options: object) -> RecMamba:
    torch.manual_seed(seed)
    settings = {"hidden_size": 6, "max_length": 40, "dropout": 0.0} | options
    block = functools.partial(Mamba, state_size=3, step_min=0.2, step_max=0.8)
    return RecMamba(num_items=12, mamba=block, **settings).double()  # type: ignore[arg-type]


def rows() -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([7, 1, 2, 3, 5])
    g = torch.Generator().manual_seed(1)
    items = torch.randint(1, 13, (5, 7), generator=g)
    return items * (torch.arange(7) < lengths[:, None]), lengths


def real(states: Tensor, lengths: Tensor) -> Tensor:
    """(B, L, D) -> (sum of lengths, D), the states of real items, row by row."""
    return states[torch.arange(states.shape[1]) < lengths[:, None]]


def by_equations(model: RecMamba, items: Tensor, lengths: Tensor) -> Tensor:
    out = []
    table, places = model.items.weight, model.positions.table.weight
    for row, length in zip(items, lengths.tolist(), strict=True):
        xs = [math.sqrt(table.shape[1]) * table[row[t]] + places[t] for t in range(length)]
        out.extend(mamba(xs, model.mamba))
    return torch.stack(out)


def test_equals_the_equations_with_gradients() -> None:
    model = build()
    items, lengths = rows()
    got = real(model(items, lengths), lengths)
    want = by_equations(model, items, lengths)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.cos(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((got * weight).sum(), parameters.values())
    theirs = torch.autograd.grad((want * weight).sum(), parameters.values())
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)


def test_later_items_leave_earlier_states_alone() -> None:
    model = build()
    items, lengths = rows()
    before = model(items, lengths)
    changed = items.clone()
    changed[0, 4] = items[0, 4] % 12 + 1
    after = model(changed, lengths)
    assert model.causal
    assert torch.equal(before[0, :4], after[0, :4])
    assert ((before - after)[0, 4:].abs().amax(1) > 1e-6).all()


@pytest.mark.parametrize("extra", [1, 30])
def test_padding_columns_change_no_state(extra: int) -> None:
    model = build().float()
    items, lengths = rows()
    assert model.padding_invariant
    torch.testing.assert_close(
        real(model(items, lengths), lengths),
        real(model(F.pad(items, (0, extra)), lengths), lengths),
        rtol=1e-5,
        atol=1e-7,
    )


def test_positions_count_from_the_first_item_kept() -> None:
    model = build(max_length=7)
    items, lengths = rows()
    before = model(items, lengths)
    with torch.no_grad():
        model.positions.table.weight[5:] += 1
    after = model(items, lengths)
    assert torch.equal(before[:, :5], after[:, :5])  # a short row never meets the last positions
    assert not torch.allclose(before[0, 5], after[0, 5])
    with pytest.raises(UserError, match=r"8 positions, the model 7.*max_length"):
        model(F.pad(items, (0, 1)), lengths)


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


def test_dropout_is_in_force_in_training_only() -> None:
    model = build(dropout=0.5)
    items, lengths = rows()
    assert not torch.equal(model(items, lengths), model(items, lengths))
    model.eval()
    assert torch.equal(model(items, lengths), model(items, lengths))
    torch.testing.assert_close(
        real(model(items, lengths), lengths), by_equations(model, items, lengths)
    )


def test_scores_of_some_items_are_those_of_all() -> None:
    model = build()
    items, lengths = rows()
    states = model(items, lengths)[torch.arange(5), lengths - 1]
    some = torch.randint(1, 13, (5, 4), generator=torch.Generator().manual_seed(2))
    scores = model.logits(states)
    assert scores.shape == (5, 12)
    torch.testing.assert_close(scores[2, 8], states[2] @ model.items.weight[9])
    torch.testing.assert_close(model.logits(states, some), scores.gather(1, some - 1))
    scores.square().sum().backward()
    assert model.items.weight.grad is not None
    assert not model.items.weight.grad[0].any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_overfits_a_handful_of_users() -> None:
    model = build(hidden_size=32).float()
    items, lengths = rows()
    targets = torch.tensor([3, 9, 1, 12, 5])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        scores = model.logits(model(items, lengths)[torch.arange(5), lengths - 1])
        loss = F.cross_entropy(scores, targets - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (scores.argmax(1) + 1).tolist() == targets.tolist()


# --- the settings, as a run composes them ---


def composed(model: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("config", [f"model={model}", *overrides])


def parameters_beside_the_table(config: DictConfig) -> int:
    model = instantiate(config.model, num_items=9, _convert_="all")
    optimizer = instantiate(config.task.optimizer, _convert_="all")(model.parameters())
    assert optimizer.defaults["lr"] == config.task.optimizer.lr
    assert optimizer.defaults["betas"] == (0.9, 0.98)
    return sum(p.numel() for p in model.parameters()) - model.items.weight.numel()


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
