"""A run's name: the same for the same result, another for any setting that decides it."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from sigma.runs.files import CONF
from sigma.runs.identity import (
    LATER,
    class_name,
    current,
    former_identities,
    identity,
    run_folder,
    run_id,
    settings,
)

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


SAME = [
    *[("resume", True), ("group", "table2"), ("tags", ["a"]), ("dataset.path", "b.txt")],
    *[("model.mamba.backend", "reference"), ("task.compile", True), ("task.capture", True)],
    *[("dataset.trim", True), ("task.by_length", True), ("trainer.accelerator", "cpu")],
    *[("callbacks.curves.folder", "b"), ("logger", {"csv": 1}), ("model.added_later", None)],
    ("callbacks.early_stopping._target_", "sigma.callbacks.PaperEarlyStopping"),
    ("callbacks.early_stopping.monitor", "val/ndcg@10"),
    ("callbacks.early_stopping.decimals", None),
    *[("model.conv", True), ("model.projection", True)],  # as released, before it could be chosen
    # What is said twice has no say of its own.
    *[("dataset.seed", 1), ("model.max_length", 50)],
]
ANOTHER = [
    *[("seed", 2), ("model.r", 6), ("model.mamba.state_size", 8), ("dataset.max_length", 20)],
    *[("dataset.batch_size", 32), ("task.optimizer.lr", 0.01), ("trainer.max_epochs", 100)],
    *[("trainer.precision", "bf16-mixed"), ("callbacks.early_stopping.patience", 5)],
    *[("model.conv", False), ("model.projection", False)],
    *[("model.added_later", 0), ("dataset.seed", 2), ("model.max_length", 20)],
    ("callbacks.early_stopping._target_", "mine.Stop"),
    *[("callbacks.early_stopping.min_delta", 0.1), ("callbacks.early_stopping.decimals", 4)],
]


@pytest.mark.parametrize("setting", SAME + ANOTHER, ids=str)
def test_what_decides_the_result_and_only_that_renames_a_run(setting: tuple[str, Any]) -> None:
    assert (run_id(changed(*setting)) == run_id(CONFIG)) == (setting in SAME)


def test_a_custom_data_set_goes_by_its_path() -> None:
    config = changed("dataset.name", "custom")
    moved = config | {"dataset": config["dataset"] | {"path": "b.csv"}}
    assert run_id(moved) != run_id(config)


def test_a_run_may_go_on_for_longer_but_is_then_another() -> None:
    longer = changed("trainer.max_epochs", 300)
    assert settings(longer) == settings(CONFIG)
    assert identity(longer) != identity(CONFIG)


def test_a_config_of_an_earlier_version_is_built_without_what_is_gone() -> None:
    older = changed("dataset.trim", True)
    older["task"]["by_length"] = True
    before = copy.deepcopy(older)
    assert current(older) == CONFIG
    assert older == before
    assert current(CONFIG) == CONFIG
    assert settings(older) == settings(CONFIG)


def test_a_run_that_left_seen_items_out_is_one_of_the_other_ranking() -> None:
    """``dataset.mask_history`` of earlier versions, by which there was one ranking."""
    older = changed("evaluation", {"monitor": "val/ndcg@10", "sampled": None})
    older["dataset"]["mask_history"] = False
    plain = run_id(older)
    assert run_id(current(older)) == plain
    older["dataset"]["mask_history"] = True
    assert current(older)["evaluation"]["monitor"] == "val/unseen/ndcg@10"
    assert run_id(current(older)) != plain
    older["evaluation"]["sampled"] = {"_target_": "sigma.ranking.sampled.SampledNegatives"}
    assert current(older)["evaluation"]["monitor"] == "val/ndcg@10"
    assert run_id(current(older)) == run_id(older)


@pytest.mark.parametrize("key", LATER)
def test_a_setting_that_came_later_renames_only_where_it_is_another(key: str) -> None:
    assert run_id(changed(key, LATER[key])) == run_id(CONFIG)
    assert run_id(changed(key, "another")) != run_id(CONFIG)
    assert former_identities(changed(key, LATER[key])) == former_identities(CONFIG)


def test_a_run_keeps_its_name_when_a_class_moves() -> None:
    targets = (
        *("sigma.datamodules.beauty.Beauty", "sigma.datamodules.sets.beauty.Beauty"),
        *("sigma.datamodules.sets.games.Games", "mine.beauty.Beauty", "yours.beauty.Beauty"),
    )
    old, new, *others = (run_id(changed("dataset._target_", target)) for target in targets)
    assert old == new
    assert len({old, *others}) == 4  # another class, and other people's of the same name


def test_our_class_names_are_unique() -> None:
    targets = {
        target
        for path in CONF.rglob("*.yaml")
        for target in re.findall(r"_target_: (sigma\.[\w.]+)", path.read_text())
    }
    assert len(targets) > 30
    assert len({class_name(target) for target in targets}) == len(targets)


@pytest.mark.parametrize("length", [{}, {"max_length": 50}])
def test_a_run_of_an_earlier_version_goes_on_where_it_stands(
    length: dict[str, int], tmp_path: Path
) -> None:
    """Its name was made of modules, and of what was said twice."""
    config = changed("dataset._target_", "sigma.datamodules.sets.beauty.Beauty")
    older = changed("dataset._target_", "sigma.datamodules.beauty.Beauty")
    older["dataset"]["seed"] = 1
    older["model"] |= length
    assert settings(current(older)) == settings(config)
    former = run_id(older, former_identities(older)[0])
    assert former != run_id(config)
    assert run_folder(tmp_path, config).name == run_id(config)
    (tmp_path / former).mkdir()
    assert run_folder(tmp_path, config).name == former
    (tmp_path / run_id(config)).mkdir()
    assert run_folder(tmp_path, config).name == run_id(config)
