"""A run's name: the same for the same result, another for any setting that decides it."""

import copy
from typing import Any

import pytest

from sigma.errors import UserError
from sigma.identity import current, determining, identity, run_id
from sigma.preflight import check_config

CONFIG: dict[str, Any] = {
    "seed": 1,
    "resume": False,
    "group": None,
    "model": {"name": "sigma", "r": 5, "mamba": {"backend": "auto", "state_size": 4}},
    "dataset": {"name": "beauty", "path": None, "max_length": 50, "batch_size": 64},
    "task": {"compile": False, "optimizer": {"lr": 0.001}},
    "trainer": {"max_epochs": 200, "accelerator": "auto", "precision": "32-true"},
    "callbacks": {"early_stopping": {"patience": 10}, "curves": {"folder": "a"}},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resume", True), ("group", "table2"), ("tags", ["a"]), ("dataset.path", "b.txt"),
        ("model.mamba.backend", "reference"), ("task.compile", True), ("task.capture", True),
        ("dataset.trim", True), ("task.by_length", True),
        ("trainer.accelerator", "cpu"), ("callbacks.curves.folder", "b"), ("logger", {"csv": 1}),
        ("model.added_later", None),
    ],
)  # fmt: skip
def test_what_does_not_decide_the_result_does_not_rename_a_run(key: str, value: Any) -> None:
    assert run_id(changed(key, value)) == run_id(CONFIG)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2), ("model.r", 6), ("model.mamba.state_size", 8), ("dataset.max_length", 20),
        ("dataset.batch_size", 32), ("task.optimizer.lr", 0.01), ("trainer.max_epochs", 100),
        ("trainer.precision", "bf16-mixed"), ("callbacks.early_stopping.patience", 5),
        ("model.added_later", 0),
    ],
)  # fmt: skip
def test_what_decides_the_result_renames_it(key: str, value: Any) -> None:
    assert run_id(changed(key, value)) != run_id(CONFIG)


def test_order_of_keys_does_not_matter() -> None:
    turned = {key: CONFIG[key] for key in reversed(CONFIG)}
    assert run_id(turned) == run_id(CONFIG)
    assert run_id(CONFIG).startswith("sigma-beauty-s1-")


def test_a_custom_data_set_is_told_by_its_path() -> None:
    a, b = changed("dataset.name", "custom"), changed("dataset.name", "custom")
    a["dataset"]["path"], b["dataset"]["path"] = "a.csv", "b.csv"
    assert run_id(a) != run_id(b)


def test_a_run_may_go_on_for_longer_but_is_then_another() -> None:
    longer = changed("trainer.max_epochs", 300)
    assert determining(longer) == determining(CONFIG)
    assert identity(longer) != identity(CONFIG)


def test_a_config_of_an_earlier_version_is_built_without_what_is_gone() -> None:
    older = changed("dataset.trim", True)
    older["task"]["by_length"] = True
    kept = copy.deepcopy(older)
    assert current(older) == CONFIG
    assert older == kept  # as it was
    assert current(CONFIG) == CONFIG
    assert determining(older) == determining(CONFIG)


def test_one_metric_decides_the_run() -> None:
    """Which it is, is not in the run's name, so another one must not go by the same name."""
    best = {"_target_": "sigma.callbacks.BestCheckpoint", "dirpath": "a", "monitor": "val/ndcg@10"}
    config = {
        "seed": 1, "matmul_precision": "high", "evaluation": {"monitor": "val/ndcg@10"},
        "callbacks": {"best": best},
    }  # fmt: skip
    check_config(config)
    best["monitor"] = "val/hr@5"
    with pytest.raises(UserError, match=r"best.monitor=val/hr@5 must be evaluation.monitor"):
        check_config(config)
