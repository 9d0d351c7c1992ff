"""What is refused before training, because no row or a wrong one would come of it."""

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from pydantic import Field

from sigma.callbacks import BestCheckpoint
from sigma.errors import UserError
from sigma.runs.check import check_config, parameters
from sigma.runs.files import CONF


class MyBest(BestCheckpoint):
    """A user's own, which counts as ours."""


@pytest.fixture(scope="module")
def composed() -> Iterator[dict[str, Any]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        typed = ["logger=csv", "hydra.runtime.output_dir=/run"]
        cfg = compose("config", typed, return_hydra_config=True)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg.hydra
    yield OmegaConf.to_container(cfg, resolve=True)
    HydraConfig.instance().cfg = before


@pytest.fixture
def config(composed: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(composed)


def put(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        config = config.setdefault(part, {})
    config[last] = value


# The values of each key that are refused by the key's name.
REFUSED: list[tuple[str, list[Any]]] = [
    *[("seed", [-1, "x", 2**32, True]), ("matmul_precision", ["low"]), ("tags", ["foo", None])],
    ("trainer.check_val_every_n_epoch", [3, None]),
    ("trainer.val_check_interval", [0.25, 1, "00:00:01:00"]),
    ("trainer.max_epochs", [0, None, "many"]),
    *[("trainer.accumulate_grad_batches", [0]), ("trainer.enable_checkpointing", [False])],
    *[("trainer.max_steps", [35]), ("trainer.min_steps", [35]), ("trainer.overfit_batches", [2])],
    ("trainer.max_time", ["00:00:01:00"]),
    *[(f"trainer.limit_{part}_batches", [0]) for part in ("train", "val", "test")],
    *[("task.ks", [10, [5, 20], []]), ("task.groups", [5]), ("task.capture", ["yes", 1])],
    ("task.groups.short", [["a", "b"], [5, 2], [-1, 2], [1, 2, 3], [0]]),
    *[("task.optimizer.lr", [None, "fast"]), ("task.optimizer.betas", [0.9, [0.9]])],
    *[("model.hidden_size", ["wide", 8.5, True]), ("model.mamba", [None])],
    ("dataset.user_bounds", [5]),
]


@pytest.mark.parametrize(
    ("key", "value", "answer"),
    [
        *[
            (key, value, rf"^{key}\b.*=.*(must be|must hold|needs)")
            for key, values in REFUSED
            for value in values
        ],
        ("task.ks", [10, "ten"], r"^task.ks.1=ten must be a valid integer"),
        ("tags", [2024], r"^tags.0=2024 must be a valid string"),
        ("task.optimizer.eps", -1.0, "^task.optimizer: .*epsilon"),
        ("task.optimizer.lr", -1, "^task.optimizer: .*learning rate"),
        ("task.optimizer.lr", {"_target_": "sigma.losses.BCE"}, "^task.optimizer: .*item_counts"),
        ("evaluation.sampled", 5, "needs evaluation=sampled"),
        ("task.by_length", True, "^task has no key 'by_length'; there are: capture"),
        ("dataset.batchsize", 1, "^dataset has no key 'batchsize'; did you mean 'batch_size'"),
        ("task.optimizer._target_", "torch.optim.Adamm", "Adamm cannot be imported"),
        ("callbacks.best.monitor", "val/hr@5", "monitor"),
        ("evaluation.sampled", {"number": 2}, "needs evaluation=sampled"),
        ("dataset.train_on_val", True, r"max_epochs= .* and callbacks.early_stopping=null"),
        ("dataset.targets", "all", "must be 'successive', 'first', 'last' or 'random'"),
        ("dataset.val_start", [1], "dataset.val_start"),
    ],
)
def test_the_answer_says_where_and_what(
    key: str, value: Any, answer: str, config: dict[str, Any]
) -> None:
    put(config, key, value)
    with pytest.raises(UserError, match=answer):
        check_config(config)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        *[("trainer.check_val_every_n_epoch", [1]), ("trainer.val_check_interval", [1.0, None])],
        *[("trainer.max_steps", [-1]), ("trainer.min_epochs", [3])],
        *[("trainer.overfit_batches", [0.0]), ("trainer.limit_train_batches", [0.25, 3])],
        *[("trainer.devices", [2, "auto", [0, 1]]), ("tags", [["foo"]])],
        *[("task.groups", [None]), ("task.groups.short", [[None, 5], [0, 1]])],
        *[("task.optimizer.lr", [1]), ("task.optimizer.betas", [[0.9, 0.99]])],
        *[("dataset.user_bounds", [[None, 9]]), ("callbacks.curves", [None])],
    ],
)
def test_left_alone(key: str, values: list[Any], config: dict[str, Any]) -> None:
    for value in values:
        put(config, key, value)
        check_config(config)


@pytest.mark.parametrize("key", ["best", "history", "efficiency"])
def test_a_callback_that_the_row_depends_on(key: str, config: dict[str, Any]) -> None:
    del config["callbacks"][key]
    with pytest.raises(UserError, match=f"callbacks.{key} is missing"):
        check_config(config)
    config["trainer"]["fast_dev_run"] = True
    check_config(config)


def test_a_final_model_without_a_stopping_rule(config: dict[str, Any]) -> None:
    config["dataset"]["train_on_val"], config["callbacks"]["early_stopping"] = True, None
    check_config(config)


def test_a_subclass_of_a_callback_does_as_well(config: dict[str, Any]) -> None:
    mine = config["callbacks"].pop("best") | {"_target_": f"{__name__}.MyBest"}
    check_config(config | {"callbacks": config["callbacks"] | {"mine": mine}})


class Shelf:
    """Takes what a constructor of ours may take, and passes the rest on."""

    def __init__(
        self,
        size: Annotated[int, Field(ge=1)],
        names: Sequence[str] = (),
        depth: float = None,  # noqa: RUF013
    ) -> None: ...


class Bookcase(Shelf):
    def __init__(self, books: "NotDefined", **options: Any) -> None:  # noqa: F821
        super().__init__(**options)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"size": 0}, "case.size=0 must be greater than or equal to 1"),
        ({"dept": 1}, "did you mean 'depth'"),
        ({"names": "ab"}, "case.names=ab must be"),
        ({"depth": None, "names": ["a"], "books": 3, "size": 2}, None),
    ],
)
def test_annotations_of_bases_are_read_and_those_of_nobody_skipped(
    arguments: dict[str, Any], answer: str | None
) -> None:
    config = {"case": {"_target_": f"{__name__}.Bookcase", **arguments}}
    if answer is None:
        check_config(config)
        return
    with pytest.raises(UserError, match=answer):
        check_config(config)


def test_arguments_that_cannot_be_known() -> None:
    assert parameters(dict) is None
    assert list(parameters(Bookcase) or {}) == ["books", "size", "names", "depth"]
