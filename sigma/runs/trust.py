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
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
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
# Where a run writes is the user's to say, and a folder's paths do not lead out of it.
PLACES = ("default_root_dir", "save_dir", "dirpath", "exclude_batches_path")
OUTWARDS = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|(.*[/\\])?\.\.([/\\]|$)")
READ = ("dataset.path", "dataset.root", "init_from")  # but these, which are read from
# What recommendations are computed from: parts that are built, and others.
BUILT = ("dataset", "objective", "model", "loss", "task")
PARTS = (*BUILT, "evaluation", "seed", "matmul_precision")
UNTRUSTED = "do not trust this folder"
RETYPE = "if you mean it, type it yourself behind resume=…"


def packages(*texts: str) -> list[str]:
    """What ``allow=my_package,another`` names."""
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
    package, name = target.split(".")[0], target.rpartition(".")[2]
    if package in sys.stdlib_module_names or not name.lstrip("_")[:1].isupper():
        return UNTRUSTED
    return f"if you trust the code of {package}, add allow={package}"


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
            f"{where}={name} is no class of this project's, and a run's folder may name no other; "
            f"{advice(name)}."
        )
    try:
        thing = get_object(target)
    except Exception as error:
        reason = excerpt(" ".join(str(error).split()) or type(error).__name__, 160)
        raise UserError(f"{where}={name} cannot be imported: {reason}") from None
    home = f"{thing.__module__}.{thing.__qualname__}" if inspect.isclass(thing) else ""
    if not is_under(home, (*HOMES, *allow)):
        raise UserError(f"{where}={name} is no class of that package; {UNTRUSTED}.")
    foreign, kind = not is_under(home, HOMES), slot(key)
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
    return isinstance(root, str) and (Path(root).expanduser() / "processed").is_dir()


def data_root(root: Any) -> str:
    """``dataset.root`` of a folder, or the user's own where that one is no folder of data."""
    return root if is_data_folder(root) else os.environ.get("SIGMA_DATA", "data")


def trusted_config(source: Path, path: str | None, allow: Sequence[str]) -> dict[str, Any]:
    """What recommendations need of a run's config, as this version builds from it.

    Callbacks, loggers and the trainer's other options are left out: they are not built.

    Args:
        path: takes the place of ``dataset.path``.

    Raises:
        UserError: the file is damaged, or what it says is not to be built.
    """
    config = current(read_config(source.parent))
    try:
        trainer = {name: config["trainer"][name] for name in ("accelerator", "precision")}
        parts = {name: config[name] for name in PARTS} | {"trainer": trainer}
        kinds = [isinstance(parts[name]["_target_"], str) for name in BUILT]
        kinds += [isinstance(parts["evaluation"]["monitor"], str), "sampled" in parts["evaluation"]]
        kinds += [isinstance(value, str | int) for value in trainer.values()]
        if not all(kinds):
            raise ValueError("parts of another kind")
        if "root" in parts["dataset"]:
            parts["dataset"]["root"] = data_root(parts["dataset"]["root"])
        if path is not None:
            parts["dataset"]["path"] = str(path)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(
            f"{source} is no config of a run (damaged?); copy the run's folder again, or train it "
            "anew."
        ) from error
    check_entries(source, entries(parts), allow)
    check_config(parts)
    return parts


def check_links(folder: Path) -> None:
    """See that what a run writes stays in its folder.

    Raises:
        UserError: a symbolic link in it leads elsewhere.
    """
    for pattern in ("*", ".hydra/*", "checkpoints/*"):
        for path in folder.glob(pattern):
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"{folder}/{excerpt(path.relative_to(folder))} is a link that leads out of "
                    "the run's folder, where nothing may be written; put in its place what it "
                    "leads to."
                )


def check_flags(source: Path, flags: Sequence[str], typed: Sequence[str]) -> list[str]:
    """The flags of a folder's command line that may be typed again.

    Args:
        typed: the user's own; a ``--config-dir`` among them takes the place of the folder's.

    Raises:
        UserError: one that says where code may come from.
    """
    result = []
    for flag in flags:
        name, _, value = flag.partition("=")
        if name == "--config-dir":
            if any(word.startswith(("--config-dir", "-cd")) for word in typed):
                continue
            raise UserError(
                f"{source}: the run took options from {excerpt(value, 200)}, which can name any "
                f"code; if they are yours, add --config-dir={shlex.quote(excerpt(value, 200))}."
            )
        if name != "--config-name" or not re.fullmatch(r"\w[\w-]*", value):
            raise UserError(f"{source}: the flag {excerpt(flag)} is not possible; {UNTRUSTED}.")
        result.append(flag)
    return result


def left_side(word: str) -> str:
    return word.partition("=")[0]


def check_overrides(
    source: Path, overrides: Sequence[str], typed: Sequence[str], allow: Sequence[str]
) -> list[str]:
    """The overrides of a folder's command line that may be typed again.

    One that the user types himself gives way to his. So does a ``dataset.root`` that is no folder
    of data: nothing is downloaded to where a folder says.

    Raises:
        UserError: one that may run code, say what Hydra itself does, or lead out of the folder.
    """
    ours = {left_side(word) for word in typed}
    parser = OverridesParser.create()
    result: list[str] = []
    content: list[tuple[str, Any]] = []
    for text in overrides:
        if left_side(text) in ours:
            continue
        where = f"{source}: {excerpt(text)}"
        try:
            override = parser.parse_override(text)
        except HydraException:
            raise UserError(f"{where} is no setting; {UNTRUSTED}.") from None
        if override.is_sweep_override():
            raise UserError(f"{where} is not one value; {UNTRUSTED}.")
        key, value = override.key_or_group, override.value()
        if re.search(r"\bhydra\b", f"{key} {override.package}"):
            raise UserError(f"{where} is a setting of Hydra's own, not of a run; {RETYPE}.")
        if "${" in text:
            raise UserError(f"{where} is an interpolation, which could read any secret; {RETYPE}.")
        if key == "dataset.root" and not is_data_folder(value):
            log.warning("%s holds no data, so SIGMA_DATA or ./data is taken.", where)
            continue
        for inner, leaf in entries(value, key):
            leaves = isinstance(leaf, str) and OUTWARDS.match(leaf) and inner not in READ
            if leaves or inner.rpartition(".")[2] in PLACES:
                raise UserError(f"{where} leads out of the run's folder; {RETYPE}.")
            content.append((inner, leaf))
        result.append(text)
    check_entries(source, content, allow)
    return result
