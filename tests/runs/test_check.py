"""What is refused before training, because no row or a wrong one would come of it."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from sigma.callbacks import BestCheckpoint, Efficiency, History
from sigma.errors import UserError
from sigma.runs.check import check_config
from tests.in_process import arguments, call
from tests.runs.front_door import ROOT, write_sequences


class OwnBest(BestCheckpoint):
    """A user's own, which counts as ours."""


class OwnHistory(History):
    """Likewise."""


class OwnEfficiency(Efficiency):
    """Likewise."""


@pytest.fixture(scope="module")
def composed() -> Iterator[dict[str, Any]]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        typed = ["logger=csv", "hydra.runtime.output_dir=/run"]
        cfg = compose("config", typed, return_hydra_config=True)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg.hydra
    yield OmegaConf.to_container(cfg, resolve=True)  # type: ignore[misc]
    HydraConfig.instance().cfg = before


@pytest.fixture
def config(composed: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(composed)


def put(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        config = config.setdefault(part, {})
    config[last] = value


# Each is a key, a value, and what the answer must hold.
REFUSED: list[tuple[str, Any, str]] = [
    ("trainer.check_val_every_n_epoch", 3, "=3 must be 1: every epoch is validated once"),
    ("trainer.check_val_every_n_epoch", None, "=null must be 1: every epoch is validated once"),
    ("trainer.val_check_interval", 0.25, "for shorter epochs set trainer.limit_train_batches=0.25"),
    ("trainer.val_check_interval", 1, "=1 must be 1.0: "),  # after each batch
    ("trainer.val_check_interval", "00:00:01:00", "must be 1.0: "),
    ("trainer.max_epochs", None, "max_epochs=null must be at least 1, or -1"),
    ("trainer.accumulate_grad_batches", 0, "accumulate_grad_batches=0 must be a whole number"),
    ("trainer.max_steps", 35, "max_steps=35 must be -1: .* set trainer.max_epochs instead"),
    ("trainer.max_time", "00:00:01:00", "must be null: .* set trainer.max_epochs instead"),
    ("trainer.min_steps", 35, "min_steps=35 must be null: .* set trainer.min_epochs instead"),
    ("trainer.overfit_batches", 2, "overfit_batches=2 must be 0: .*trainer.limit_train_batches"),
    ("trainer.limit_train_batches", 0, "limit_train_batches=0 must be above 0"),
    ("trainer.limit_val_batches", 0.0, "limit_val_batches=0.0 must be above 0"),
    ("trainer.limit_test_batches", 0, "limit_test_batches=0 must be above 0"),
    ("trainer.enable_checkpointing", False, "enable_checkpointing=False must be true"),
    ("task.ks", 10, r"task.ks=10 must be a list, in brackets, such as \[10\]"),
    ("task.ks", [10, "ten"], r"Each value of task.ks=\[10, 'ten'\] must be a whole number"),
    ("task.groups", 5, "task.groups=5 must be names with bounds"),
    ("task.groups.short", ["a", "b"], r"short=\['a', 'b'\] must be a pair"),
    ("task.groups.short", [5, 2], r"short=\[5, 2\] must be a pair .* below the upper one"),
    ("task.groups.short", [1, 2, 3], r"short=\[1, 2, 3\] must be a pair"),
    ("task.optimizer.lr", None, "task.optimizer.lr=None must be above 0"),
    ("task.optimizer.betas", 0.9, "task.optimizer.betas=0.9 must be a list"),
    ("task.optimizer.betas", [0.9], r"betas=\[0.9\] must be a list of 2 values"),
    ("task.optimizer.betas", [0.9, 1], r"betas=\[0.9, 1\] must be two numbers from 0 to below 1"),
    ("task.optimizer.eps", -1.0, "task.optimizer, torch.optim.Adam, refuses .*Invalid epsilon"),
    ("model.mamba", None, "model.mamba=null must be a mapping with a _target_"),
    ("dataset.user_bounds", 5, "dataset.user_bounds=5 must be a list"),
    ("task.capture", "yes", "task.capture=yes must be true or false"),
    ("task.by_length", True, "task has no key 'by_length'; there are: capture"),
    ("dataset.trim", True, "dataset has no key 'trim'; there are: "),
    ("tags", "foo", r"^tags=foo must be a list, in brackets, such as \[foo\]"),
    ("tags", None, "^tags=None must be a list, in brackets.$"),
    ("tags", [2024], r"^Each value of tags=\[2024\] must be text"),
]


@pytest.mark.parametrize(("key", "value", "answer"), REFUSED)
def test_refused(key: str, value: Any, answer: str, config: dict[str, Any]) -> None:
    put(config, key, value)
    with pytest.raises(UserError, match=answer):
        check_config(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.check_val_every_n_epoch", 1), ("trainer.val_check_interval", 1.0),
        ("trainer.val_check_interval", None), ("trainer.max_steps", -1),
        ("trainer.max_time", None), ("trainer.min_steps", None), ("trainer.min_epochs", 3),
        ("trainer.overfit_batches", 0.0), ("trainer.enable_checkpointing", True),
        ("trainer.limit_train_batches", 0.25), ("trainer.limit_val_batches", 3),
        ("trainer.num_sanity_val_steps", 2), ("trainer.devices", 2),
        ("task.groups", None), ("task.groups.short", [None, 5]), ("task.groups.short", [0, 1]),
        ("task.optimizer.betas", [0.9, 0.99]), ("dataset.user_bounds", [None, 9]),
        ("task.capture", False),
        ("tags", ["foo"]), ("callbacks.curves", None),
    ],
)  # fmt: skip
def test_left_alone(key: str, value: Any, config: dict[str, Any]) -> None:
    put(config, key, value)
    check_config(config)


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_a_cpu_has_no_numbered_devices(
    accelerator: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config["trainer"] |= {"accelerator": accelerator, "devices": [0, 1]}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer.devices=\[0, 1\] .*: trainer.devices=2\.$"):
        check_config(config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config["trainer"]["accelerator"] = "auto"
    check_config(config)


@pytest.mark.parametrize(
    ("key", "own"), [("best", OwnBest), ("history", OwnHistory), ("efficiency", OwnEfficiency)]
)
def test_a_callback_that_the_row_depends_on(key: str, own: type, config: dict[str, Any]) -> None:
    callbacks = config["callbacks"]
    removed = callbacks.pop(key)
    with pytest.raises(UserError, match=f"callbacks.{key} is missing: .* subclass of sigma"):
        check_config(config)
    callbacks["mine"] = removed | {"_target_": f"{own.__module__}.{own.__name__}"}
    check_config(config)
    del callbacks["mine"]
    config["trainer"]["fast_dev_run"] = True
    check_config(config)
    config["trainer"]["fast_dev_run"] = False
    del callbacks["row"]
    if key == "best":  # it chooses what is tested, row or not
        with pytest.raises(UserError, match=r"callbacks.best is missing"):
            check_config(config)
    else:
        check_config(config)


def test_through_the_front_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read, and so as one sentence."""
    data = write_sequences(tmp_path / "tiny.txt", users=60, items=30)
    for typed, answer in [
        ("~callbacks.best", "callbacks.best is missing"),
        ("+trainer.max_steps=35", "trainer.max_steps=35 must be -1"),
        ("tags=foo", "tags=foo must be a list"),
    ]:
        assert call(monkeypatch, *arguments(tmp_path / "run", data, typed)) == 1
        shown = capsys.readouterr()
        assert answer in shown.err
        assert "Traceback" not in shown.err
        assert "Data: " not in shown.out
