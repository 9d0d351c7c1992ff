"""A run's folder is data, whoever wrote it: nothing in it is run, nor says where to write.

``sigma.recommend`` builds what a ``config.json`` names, and ``resume=<folder>`` types again what a
``command.json`` holds. Both may name classes of this project, of ``torch.optim``, and Lightning's
trainer, callbacks and TensorBoard logger, each in its place, but no method and no function. Of
other packages they may name what the user allows. All of it is looked at before anything is built,
and what is not allowed is not even imported.
"""

import inspect
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from sigma.errors import UserError, excerpt
from sigma.runs.check import check_config
from sigma.runs.identity import current
from sigma.runs.records import read_config

log = logging.getLogger(__name__)

# Where the classes live that may be built, and what else their modules are called.
HOMES = (
    *("sigma", "torch.optim", "lightning.pytorch.trainer", "lightning.pytorch.callbacks"),
    "lightning.pytorch.loggers.tensorboard",
)
ALIASES = (
    *("lightning.Trainer", "lightning.pytorch.Trainer"),
    "lightning.pytorch.loggers.TensorBoardLogger",
)
# Of these, what writes and deletes files, by names that a checkpoint may give it.
WRITERS = tuple(
    f"lightning.pytorch.callbacks.{module}"
    for module in ("model_checkpoint", "on_exception_checkpoint", "prediction_writer", "spike")
)
# The class that stands at a key, or one of its own kind; elsewhere stand parts of models.
SLOTS = {
    "dataset": "sigma.datamodules.base.SequenceDataModule",
    "dataset.shop": "sigma.datamodules.simulator.Shop",
    "objective": "sigma.datamodules.objectives.Objective",
    "model": "sigma.models.base.Model",
    "loss": "torch.nn.Module",
    "evaluation.sampled": "sigma.ranking.sampled.SampledNegatives",
    "task": "sigma.task.SequenceTask",
    "task.optimizer": "torch.optim.Optimizer",
    "trainer": "lightning.Trainer",
    "callbacks.*": "lightning.Callback",
    "logger.*": "lightning.pytorch.loggers.Logger",
}
PART = "torch.nn.Module"
# Hydra's own keys and the kinds of their values; ``_args_`` would pass by the check of arguments.
SPECIAL = {"_target_": str, "_partial_": bool, "_recursive_": bool, "_convert_": str}
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
# What recommendations are computed from: parts that are built, and what is read of others.
BUILT = ("dataset", "objective", "model", "loss", "task")
READ_OF = {"evaluation": ("monitor", "sampled"), "trainer": ("accelerator", "precision")}
UNTRUSTED = "do not trust this folder"


def packages(allow: str | Sequence[str]) -> list[str]:
    """What ``allow=my_package,another`` names, or a list."""
    texts = [allow] if isinstance(allow, str) else allow
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def is_under(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that a config holds, containers too, however deep it is."""
    rest = [(key, value)]
    while rest:
        key, value = rest.pop()
        yield key, value
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            rest += [(f"{key}.{name}" if key else str(name), child) for name, child in pairs]


def slot(key: str) -> str | None:
    """The class of which kind must be what stands at a key; None for a part of something."""
    group, _, name = key.partition(".")
    observer = group in ("callbacks", "logger") and name and "." not in name
    return SLOTS.get(f"{group}.*" if observer else key)


def advice(target: str) -> str:
    """How a class can be allowed, where that can help: not what is no class, nor Python's own."""
    package, name = excerpt(target.split(".")[0]), target.rpartition(".")[2]
    if package in sys.stdlib_module_names or not name.lstrip("_")[:1].isupper():
        return UNTRUSTED
    return f"if {package} is your own code, add allow={package}"


def check_class(where: str, key: str, target: Any, allow: Sequence[str]) -> bool:
    """Whether a class is built only as the user allows it.

    Raises:
        UserError: it is no class that may stand there.
    """
    name = excerpt(target, 80)
    if not NAME.fullmatch(target):
        raise UserError(f"{where}={excerpt(target)} is no name of a class; {UNTRUSTED}.")
    if not is_under(target, (*HOMES, *ALIASES, *allow)):
        raise UserError(
            f"{where}={name} is no class of this project, and a run's folder may name no other; "
            f"{advice(target)}."
        )
    try:
        thing = get_object(target)
    except Exception as error:
        reason = excerpt(" ".join(str(error).split()) or type(error).__name__, 160)
        raise UserError(f"{where}={name} cannot be imported: {reason}") from None
    home = f"{thing.__module__}.{thing.__qualname__}" if inspect.isclass(thing) else ""
    if not is_under(home, (*HOMES, *allow)):
        raise UserError(
            f"{where}={name} is no class of {excerpt(target.split('.')[0])}; {UNTRUSTED}."
        )
    if is_under(home, WRITERS) and not is_under(home, allow):
        raise UserError(f"{where}={name} writes files of its own; to let it, add allow=lightning.")
    foreign, kind = not is_under(home, HOMES) or is_under(home, WRITERS), slot(key)
    base = get_object(kind or PART)
    if not issubclass(thing, base) and not (foreign and kind is None):
        raise UserError(f"{where}={name} is no {base.__name__}, as must stand there; {UNTRUSTED}.")
    return foreign


def check_entries(source: Path, config: Iterable[tuple[str, Any]], allow: Sequence[str]) -> None:
    """See that values of a config, by their dotted keys, are plain or classes that may be built.

    Raises:
        UserError: code by whatever way, or an interpolation, which no resolved config holds.
    """
    beyond = []
    for key, value in config:
        parent, _, name = key.rpartition(".")
        where = f"{source}: {excerpt(key, 80)}"
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise UserError(f"{where}={excerpt(value)} is not resolved; {UNTRUSTED}.")
        if not re.fullmatch("_.+_", name):
            continue
        if not isinstance(value, SPECIAL.get(name, ())):
            raise UserError(f"{where}={excerpt(value)} is not possible; {UNTRUSTED}.")
        if name == "_partial_" and value and slot(parent) and parent != "task.optimizer":
            raise UserError(f"{where}=true is not possible; {UNTRUSTED}.")
        if name == "_target_" and check_class(where, parent, value, allow):
            beyond.append(str(value))
    if beyond:
        names = ", ".join(dict.fromkeys(beyond))
        log.warning("Allowed beyond this project, and run as your own code: %s", names)


def is_data_folder(root: Any) -> bool:
    """Whether a run has kept its data there: only then may a folder's ``dataset.root`` be used."""
    return isinstance(root, str) and os.path.isdir(os.path.expanduser(f"{root}/processed"))


def data_root(root: Any) -> str:
    """``dataset.root`` of a folder, or the user's own where that one is no folder of data."""
    return root if is_data_folder(root) else os.environ.get("SIGMA_DATA", "data")


def trusted_config(
    source: Path, path: str | None = None, allow: str | Sequence[str] = ()
) -> dict[str, Any]:
    """What recommendations need of a run's config, as this version builds from it.

    Callbacks, loggers and the trainer's other options are left out: they are not built.

    Args:
        path: takes the place of ``dataset.path``.
        allow: packages of the user's own.

    Raises:
        UserError: the file is damaged, or what it says is not to be built.
    """
    config = current(read_config(source.parent))
    try:
        parts = {name: config[name] for name in (*BUILT, "seed", "matmul_precision")}
        for part, names in READ_OF.items():
            parts[part] = {name: config[part][name] for name in names}
        texts = [parts[name]["_target_"] for name in BUILT]
        texts += [parts["evaluation"]["monitor"], parts["trainer"]["accelerator"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a part that is no text")
        if "root" in parts["dataset"]:
            parts["dataset"]["root"] = data_root(parts["dataset"]["root"])
        if path is not None:
            parts["dataset"]["path"] = str(path)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(
            f"{source} is no config of a run (damaged?); copy the run's folder again, or train it "
            "anew."
        ) from error
    check_entries(source, entries(parts), packages(allow))
    try:
        check_config(parts)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return parts
