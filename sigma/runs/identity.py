"""What makes a run the run it is: the settings that decide its result, and a name made of them.

A sweep started again finds its runs by this name, on any machine: it is the run's folder, the stem
of its row and its W&B id.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf

from sigma.arguments import Name
from sigma.runs.check import check_value

# Of the result row. 1 knew neither objective nor evaluation; 1 and 2 named runs by modules, too.
SCHEMA = 3
# What may differ between two starts of the same run: none of it changes what an epoch computes,
# but for rounding (how fast, where, and what is written beside).
TRAINER = (
    *("max_epochs", "accelerator", "devices", "num_nodes", "strategy", "default_root_dir"),
    *("log_every_n_steps", "enable_model_summary", "enable_progress_bar", "fast_dev_run"),
)
FREE = (
    *("resume", "callbacks", "logger", "group", "tags", "paper", "hydra", "model.mamba.backend"),
    *("dataset.path", "dataset.root", "dataset.eval_batch_size", "dataset.malformed"),
    *("dataset.max_malformed", "dataset.missing", "dataset.delimiter", "dataset.encoding"),
    *("dataset.time_format", "dataset.columns.names"),
    *("task.capture", "task.compile", *(f"trainer.{key}" for key in TRAINER)),
)
# Keys of earlier versions' configs; they decided nothing but speed.
GONE = ("dataset.trim", "task.by_length")
# Whether seen items were left out of the one ranking that there was. Names still hold what the
# paper's runs said, and those with drawn negatives, which are unseen.
MASKED = "dataset.mask_history"
# What was said as yes or no, and how it is said now; names still hold the former.
DUPLICATES = "dataset.drop_duplicates"
FORMER = {"keep": False, "first": True}
# Settings that came after runs had been named; with this value no name holds them.
LATER = {
    **{"model.shortcut": "projected", "model.conv": True, "model.projection": True},
    **{"dataset.targets": "successive", "dataset.train_on_val": False},
}
# Modules of earlier versions, in the configs of their runs, and where their classes live now.
MOVED = {
    f"sigma.datamodules.{name}": f"sigma.datamodules.sets.{name}"
    for name in (
        *("beauty", "custom", "games", "games_2014", "ml_100k", "ml_1m", "ml_32m"),
        *("ml_latest_small", "simulated", "sports", "yelp"),
    )
} | {"sigma.sampled": "sigma.ranking.sampled"}
# Settings that are said twice: the first has no say where it equals the second.
SAME = {"dataset.seed": "seed", "model.max_length": "dataset.max_length"}
# Free while a run goes on, but they decide where it ends.
ENDING = ("trainer.max_epochs", "callbacks.early_stopping.patience")
RULE = "callbacks.early_stopping."
PAPER_RULE = ("sigma.callbacks.PaperEarlyStopping", "PaperEarlyStopping")  # has no say


def flattened(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf; an empty mapping is one."""
    if isinstance(config, dict) and config:
        for key, value in config.items():
            yield from flattened(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, config


def is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE + GONE)


def with_targets(config: Any, rename: Callable[[str], str]) -> Any:
    """A copy of the config with every ``_target_`` renamed."""
    if isinstance(config, dict):
        return {
            key: rename(value)
            if key == "_target_" and isinstance(value, str)
            else with_targets(value, rename)
            for key, value in config.items()
        }
    return [with_targets(value, rename) for value in config] if isinstance(config, list) else config


def moved(config: Any, places: dict[str, str]) -> Any:
    """A copy of the config with its classes in other modules."""

    def rename(target: str) -> str:
        module, _, name = target.rpartition(".")
        return f"{places.get(module, module)}.{name}"

    return with_targets(config, rename)


def class_name(target: str) -> str:
    """Our classes' names decide, wherever they live; what is not ours is its whole path."""
    return target.rpartition(".")[2] if target.startswith("sigma.") else target


def current(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config, of whatever version, as this version builds from it."""
    config = moved(config, MOVED)
    if is_masked(config):
        monitor = config["evaluation"]["monitor"]
        config["evaluation"]["monitor"] = monitor.replace("val/", "val/unseen/", 1)
    data = config.get("dataset", {})
    if DUPLICATES.split(".")[1] in data:
        dropped = data.pop(DUPLICATES.split(".")[1])
        data.setdefault("duplicates", "first" if dropped else "keep")
    for key in (*GONE, MASKED):
        group, name = key.split(".")
        config.get(group, {}).pop(name, None)
    return config


def is_masked(config: dict[str, Any]) -> bool:
    """Whether a run of an earlier version ranked unseen items alone, by the plain names."""
    masked = config.get("dataset", {}).get("mask_history")
    return bool(masked and not config["evaluation"]["sampled"])


def upgraded(config: dict[str, Any], schema: int) -> dict[str, Any]:
    """A config of an older row, with what was implied then said as it is said now."""
    config = current(config)
    if schema == 1:
        config["task"].pop("loss", None)  # there was but one
        config.setdefault("loss", {"_target_": "sigma.losses.CrossEntropy"})
        config.setdefault("evaluation", {}).setdefault("monitor", "val/ndcg@10")
        if config["model"].get("_target_") == "sigma.models.sasrec.SASRec":
            config["model"].setdefault("norm_first", False)
    return config


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The flattened part of a resolved config that decides what an epoch computes."""
    flat = dict(flattened(with_targets(config, class_name)))
    if flat.get("init_from") is not None:  # wherever it lies
        flat["init_from"] = Path(flat["init_from"]).name
    flat.setdefault(MASKED, flat.get("evaluation.sampled._target_") is not None)
    if "dataset.duplicates" in flat:
        value = flat.pop("dataset.duplicates")
        flat[DUPLICATES] = FORMER.get(value, value)
    doubled = {key for key, other in SAME.items() if key in flat and flat[key] == flat.get(other)}
    later = {key for key, value in LATER.items() if flat.get(key) == value}
    return {k: v for k, v in flat.items() if not is_free(k) and k not in doubled | later}


def is_rule(key: str, value: Any) -> bool:
    """Whether a setting is of a stopping rule that is not the paper's."""
    return key.startswith(RULE) and not key.endswith(".monitor") and value not in PAPER_RULE


def named(flat: dict[str, Any], deciding: dict[str, Any]) -> dict[str, Any]:
    """What decides an epoch's result, and what a name needs beside it.

    Settings that are null are left out, so that an option added later, off by default, renames no
    run. A custom data set has no other name than its path.
    """
    names = (*ENDING, *(["dataset.path"] if flat.get("dataset.name") == "custom" else []))
    result = {key: flat.get(key) for key in names} | deciding
    result |= {key: value for key, value in flat.items() if is_rule(key, value)}
    return {key: value for key, value in result.items() if value is not None}


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Every setting of a resolved config that decides a run's result, flattened."""
    return named(dict(flattened(config)), settings(config))


def protocol_settings(config: dict[str, Any]) -> dict[str, Any]:
    """``identity`` with settings under the names that they have now, those named later too."""
    flat: dict[str, Any] = LATER | identity(config)
    former = flat.pop(DUPLICATES, False)
    now = {value: key for key, value in FORMER.items()}
    return flat | {"dataset.duplicates": now.get(former, former)}


def former_identities(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The same as schema 2 had it: by the modules of then, and with what was said twice.

    Whether the model's class took ``max_length`` a config does not tell, so there are two.
    """
    flat = dict(flattened(moved(config, {new: old for old, new in MOVED.items()})))
    flat.setdefault("dataset.seed", flat.get("seed"))
    flat.setdefault(MASKED, settings(config)[MASKED])
    flat = {key: value for key, value in flat.items() if (key, value) not in LATER.items()}
    former = named(flat, {key: value for key, value in flat.items() if not is_free(key)})
    return [former, {"model.max_length": flat.get("dataset.max_length")} | former]


def digest(flat: dict[str, Any]) -> str:
    """Eight hexadecimal digits of flattened settings, whatever their order."""
    text = json.dumps(flat, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_id(config: dict[str, Any], flat: dict[str, Any] | None = None) -> str:
    """For example ``sigma-beauty-s2020-1f3c9a07``; its last part is a digest of ``identity``.

    Args:
        flat: settings in place of ``identity``.
    """
    names = [str(config[part].get("name") or part) for part in ("model", "dataset")]
    return f"{'-'.join(names)}-s{config['seed']}-{digest(flat or identity(config))}"


def run_folder(runs: Path, config: dict[str, Any]) -> Path:
    """Where a sweep in ``runs`` has this run: a folder of its name, or of a former name."""
    folder = runs / run_id(config)
    former = (runs / run_id(config, flat) for flat in former_identities(config))
    return folder if folder.exists() else next((f for f in former if f.is_dir()), folder)


def resolved(root: DictConfig) -> dict[str, Any]:
    """The parts of a job's config that make its identity; others need a folder not there yet."""
    config = OmegaConf.create()
    for key, _ in flattened(OmegaConf.to_container(root, resolve=False)):
        if is_free(key) and key not in (*ENDING, "dataset.path") and not key.startswith(RULE):
            continue
        value = OmegaConf.select(root, key)
        if isinstance(value, Container):
            value = OmegaConf.to_container(value, resolve=True)
        OmegaConf.update(config, key, value)
    plain: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    return plain


def _name(*, _root_: DictConfig) -> str:
    config = resolved(_root_)
    for group in ("model", "dataset"):  # Hydra makes the folder before anything else is checked
        check_value(f"{group}.name", config[group].get("name"), Name | None)
    if not HydraConfig.initialized() and OmegaConf.select(_root_, "hydra") is None:
        return run_id(config)
    place = OmegaConf.select(_root_, "hydra.sweep.dir") or HydraConfig.get().sweep.dir
    return run_folder(Path(place), config).name


def _name_in_sweep(*, _root_: DictConfig) -> str | None:
    multirun = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    return _name(_root_=_root_) if multirun else None


def register() -> None:
    """Make ``${run_id:}`` and ``${sweep_id:}`` known to configs: the name of the run they describe,
    the latter null but in a multirun, where a folder is one of many starts.
    """
    OmegaConf.register_new_resolver("run_id", _name, replace=True)
    OmegaConf.register_new_resolver("sweep_id", _name_in_sweep, replace=True)


register()
