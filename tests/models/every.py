"""Every model of ``conf/model`` at a small size, and packed batches, for tests of all of them."""

import copy
import functools
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from sigma.capture import Inputs
from sigma.models.base import Model
from sigma.ops import Rows, rows_of
from sigma.task import SequenceTask
from tests.models import checks
from tests.runs.front_door import ROOT

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
COUNTED = ("item_knn", "markov", "popularity", "vmis_knn")
TRAINED = [name for name in MODELS if name not in COUNTED]
K, L = 20, 9
# Sizes at which an epoch takes a moment; of those keys that a model has.
SMALL = {"hidden_size": 16, "gru_size": 12, "inner_size": 24, "mamba.state_size": 4}


@functools.cache
def composed(name: str) -> DictConfig:
    return checks.composed(name, f"dataset.max_length={L}")


def small(name: str) -> dict[str, int]:
    model = composed(name).model
    return {key: n for key, n in SMALL.items() if OmegaConf.select(model, key) is not None}


def built(name: str, **settings: object) -> Any:
    """The small model as it starts, in training."""
    config = copy.deepcopy(composed(name))
    for key, value in small(name).items():
        OmegaConf.update(config.model, key, value)
    torch.manual_seed(0)
    return instantiate(config.model, num_items=K, _convert_="all", **settings)


def build(name: str, **settings: object) -> Any:
    """The small model in evaluation; of a counted one, it has counted."""
    model = built(name, **settings)
    if model.counted:
        items = torch.randint(1, K + 1, (200,), generator=torch.Generator().manual_seed(1))
        model.count(items, torch.arange(0, 201, 10))
    return model.eval()


def without_dropout(name: str, **settings: object) -> Any:
    """The model in training, but for ``settings`` without any dropout."""
    off = {key: 0.0 for key in composed(name).model if key.endswith("dropout")}
    return built(name, **(off | settings))


LENGTHS = (L, 1, 2, 5)
TARGETS = torch.tensor([3, 9, 1, 12])


def batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 2) -> tuple[Tensor, Rows]:
    """Items end to end, and their rows; as a loader has it, none is longer than L."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, K + 1, (sum(lengths),), generator=generator)
    return items, rows_of(torch.tensor(lengths), L)


def ends(rows: Rows) -> Tensor:
    """The places of the last items."""
    return rows.offsets[1:] - 1


def every_state(model: Model, items: Tensor, rows: Rows) -> Tensor:
    return model(items, rows, torch.arange(len(items)))


def last_states(model: Model, items: Tensor, rows: Rows) -> Tensor:
    return model(items, rows, ends(rows))


def step_loss(model: Model, inputs: Inputs, loss: nn.Module) -> Tensor:
    """What a training step minimises; the model's own loss is in it."""
    return SequenceTask(model, torch.optim.Adam, loss).batch_loss(inputs)


def weighted(states: Tensor) -> Tensor:
    """A scalar that each entry of the states moves otherwise."""
    weight = torch.linspace(-1, 1, states.numel(), dtype=states.dtype)
    return (states * weight.reshape(states.shape)).sum()


def outcome(model: Model, states: Tensor) -> list[Tensor]:
    """States, and the gradients that every parameter gets from them."""
    parameters = list(model.parameters())
    if not parameters:
        return [states]
    gradients = torch.autograd.grad(weighted(states), parameters, materialize_grads=True)
    return [states, *gradients]


def assert_close(got: list[Tensor], want: list[Tensor]) -> None:
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


# Switches that change what is computed and that no YAML sets.
SWITCHED = [
    ("linrec", {"mask_padding": True}),
    ("moe_matrrec", {"leak": True}),
    (
        "sigma_released",
        dict.fromkeys(("cross_gate", "look_ahead", "reinit_mamba", "padding_item"), False)
        | {"flip_until": None},
    ),
]
EVERY = [*((name, {}) for name in MODELS), *SWITCHED]
EVERY_TRAINED = [*((name, {}) for name in TRAINED), *SWITCHED]
