"""What the tests of several models share beside ``slow``: models, batches, states, checks."""

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from sigma.capture import Inputs
from sigma.models.base import Model
from sigma.models.mamba import Mamba
from sigma.ops import Rows, rows_of
from sigma.runs.check import parameters
from sigma.task import SequenceTask
from tests.runs.front_door import ROOT

K, L = 12, 9  # items; the longest row of a model of the configuration

# --- models of the configuration, at sizes at which an epoch takes a moment ---

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
COUNTED = ("item_knn", "markov", "popularity", "vmis_knn")
TRAINED = [name for name in MODELS if name not in COUNTED]
# A file a class, and those whose settings take another way through it.
OTHER_WAYS = ("hstu_time", "sasrec_tuned", "sigma_logged")
WAYS = [
    name
    for name in MODELS
    if name in OTHER_WAYS or "_target_" in (ROOT / f"conf/model/{name}.yaml").read_text()
]
RELEASED = ("cross_gate", "look_ahead", "reinit_mamba", "padding_item")
# Switches that change what is computed and that no YAML sets.
SWITCHED: list[tuple[str, dict[str, Any]]] = [
    ("linrec", {"mask_padding": True}),
    ("moe_matrrec", {"leak": True}),
    ("sigma_released", dict.fromkeys(RELEASED, False) | {"flip_until": None}),
]
EVERY = [*((name, {}) for name in MODELS), *SWITCHED]
EVERY_TRAINED = [*((name, {}) for name in TRAINED), *SWITCHED]


@functools.cache
def composed(model: str, *overrides: str) -> DictConfig:
    """The configuration of a run."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [f"model={model}", *overrides])


def small(name: str) -> dict[str, int]:
    """Small sizes, of those keys that the model has."""
    sizes = {"hidden_size": 16, "gru_size": 12, "inner_size": 24}
    sizes |= {"mamba.state_size": 4, "mamba.head_size": 8}
    model = composed(name).model
    return {key: n for key, n in sizes.items() if OmegaConf.select(model, key) is not None}


def built(name: str, num_items: int = K, **settings: object) -> Any:
    """The small model as it starts, in training."""
    config = copy.deepcopy(composed(name, f"dataset.max_length={L}").model)
    for key, value in small(name).items():
        OmegaConf.update(config, key, value)
    torch.manual_seed(0)
    return instantiate(config, num_items=num_items, _convert_="all", **settings)


def build(name: str, **settings: object) -> Any:
    """The small model in evaluation; of a counted one, it has counted."""
    model = built(name, **settings)
    if model.counted:
        model.count(*flat(random_histories(20, K, 10)))
    return model.eval()


def without_dropout(name: str, **settings: object) -> Any:
    """The small model in training, but for ``settings`` without any dropout."""
    off = {key: 0.0 for key in composed(name).model if key.endswith("dropout")}
    return built(name, **(off | settings))


# --- models for the slow equations ---


def shake(model: nn.Module, std: float = 0.4) -> None:
    """Move every parameter off its start, where zeros and ones would hide an error.

    Padding's row of the table too: nothing may read it in a model that reads no padding.
    """
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(std * torch.randn(p.shape, generator=g))


def tiny(kind: type[Model], std: float = 0.4, **options: object) -> Any:
    """A model in evaluation, in float64, shaken."""
    mamba = functools.partial(Mamba, state_size=3, step_min=0.2, step_max=0.8)
    sizes = {"max_length": 7, "hidden_size": 6, "num_heads": 2, "inner_size": 10, "mamba": mamba}
    settings = {key: size for key, size in sizes.items() if key in (parameters(kind) or ())}
    torch.manual_seed(0)
    model = kind(num_items=K, **(settings | options))
    shake(model, std)
    return model.double().eval()


# --- batches and states ---

LENGTHS = (L, 1, 2, 5)
TARGETS = torch.tensor([3, 9, 1, 12])


def timed(rows: Rows, size: int) -> Rows:
    """With times of ``size`` places, which rise by the position in the row, days at the end."""
    at = rows.positions(size)
    return rows._replace(times=1000 * at**3, next_times=1000 * (at + 1) ** 3)


def one_row(length: int, longest: int | None = None) -> Rows:
    return timed(rows_of(torch.tensor([length]), longest), length)


def padded(lengths: tuple[int, ...], width: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Items (B, width) and lengths (B,)."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, K + 1, (len(lengths), width), generator=generator)
    n = torch.tensor(lengths)
    return items * (torch.arange(width) < n[:, None]), n


def five(width: int = 7, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Padded: a full row, one of one item, short ones."""
    return padded((width, 1, 2, 3, width - 2), width, seed)


def packed(items: Tensor, lengths: Tensor) -> tuple[Tensor, Rows]:
    """Padded -> the rows' items (T,) end to end, and where they lie among as many columns."""
    width = items.shape[1]
    values = items[torch.arange(width) < lengths[:, None]]
    return values, timed(rows_of(lengths, width), len(values))


def batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 2) -> tuple[Tensor, Rows]:
    """Packed; as a loader has it, none is longer than L."""
    return packed(*padded(lengths, L, seed))


def ends(rows: Rows) -> Tensor:
    """The places of the last items, which are scored."""
    return rows.offsets[1:] - 1


def every_state(model: Model, items: Tensor, rows: Rows) -> Tensor:
    return model(items, rows, torch.arange(len(items)))


def last_states(model: Model, items: Tensor, rows: Rows) -> Tensor:
    return model(items, rows, ends(rows))


def step_loss(model: Model, inputs: Inputs, loss: nn.Module) -> Tensor:
    """What a training step minimises; the model's own loss is in it."""
    return SequenceTask(model, torch.optim.Adam, loss).batch_loss(inputs)


# --- histories for the models that count ---


def random_histories(users: int, num_items: int, longest: int, seed: int = 0) -> list[list[int]]:
    """With repeats; small item ids are the most frequent."""
    draw = random.Random(seed)
    weights = [1 / (1 + i) for i in range(num_items)]
    items = range(1, num_items + 1)
    return [draw.choices(items, weights, k=draw.randint(1, longest)) for _ in range(users)]


def flat(histories: list[list[int]], dtype: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
    """The arguments of ``count``."""
    items = torch.tensor([i for history in histories for i in history], dtype=dtype)
    return items, torch.tensor([0, *map(len, histories)]).cumsum(0)


def latest(histories: list[list[int]], width: int) -> tuple[Tensor, Rows]:
    """The last ``width`` items of each, packed."""
    cut = [history[-width:] for history in histories]
    return flat(cut, torch.int64)[0], rows_of(torch.tensor([*map(len, cut)]), width)


def last_scores(model: Model, histories: list[list[int]], width: int) -> Tensor:
    """Scores (M, K) after the last item of each history."""
    return model.logits(last_states(model, *latest(histories, width)))


# --- checks ---


def assert_same(model: nn.Module, got: Tensor, want: Tensor) -> None:
    """The same numbers, and the same gradient of every parameter from each of them."""
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    parameters = dict(model.named_parameters())
    if not parameters:
        return
    weight = torch.cos(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    gradients = functools.partial(
        torch.autograd.grad, inputs=[*parameters.values()], materialize_grads=True
    )
    # The two may have a part in common, such as states that were given to both.
    ours = gradients((got * weight).sum(), retain_graph=True)
    theirs = gradients((want * weight).sum())
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def assert_equations(
    model: Any,
    row_states: Callable[..., list[Tensor]],
    *args: object,
    padded_rows: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Scores at every real item are those of ``row_states(model, items (L,), n_u, *args)``."""
    items, lengths = padded_rows or five()
    pairs = zip(items, lengths.tolist(), strict=True)
    want = torch.stack([x for row, n in pairs for x in row_states(model, row, n, *args)[:n]])
    want = want @ model.items.weight[1 : K + 1].T + getattr(model, "bias", 0.0)
    assert_same(model, model.logits(every_state(model, *packed(items, lengths))), want)
