"""Ways of planting code in a run's folder; whatever runs leaves a marker."""

import os
from pathlib import Path
from typing import Any

import torch

from sigma.runs.files import CONF

SECRET = "none-of-your-business"
# Leaves the marker when it is imported, and when it is called.
PLANTED = """
from pathlib import Path


def boom(*args, **kwargs):
    Path({marker!r}).touch()


class Boom:
    def __init__(self, *args, **kwargs):
        boom()


boom()
"""
HYDRA_CALLBACK = "# @package _global_\nhydra: {callbacks: {x: {_target_: planted.Boom}}}\n"
# What makes the marker by being built; MARKER, FOLDER and PICKLE are paths.
BOOM = {"_target_": "planted.Boom"}
HUB = {"_target_": "torch.hub.load", "repo_or_dir": "FOLDER", "source": "local", "model": "m"}
OPEN = {"_target_": "builtins.open", "file": "MARKER", "mode": "w"}
ZIP = {"_target_": "zipfile.ZipFile", "file": "MARKER", "mode": "w"}
COPY = {"_target_": "shutil.copyfile", "src": "PICKLE", "dst": "MARKER"}
UNPICKLE = {"_target_": "torch.load", "f": "PICKLE", "weights_only": False}
CHECKPOINT = {"checkpoint_path": "PICKLE", "weights_only": False}

IN_CONFIG: dict[str, tuple[str, Any]] = {
    "an argument": ("objective.x", HUB),
    "an objective": ("objective", BOOM),
    "a data set": ("dataset", BOOM),
    "a model": ("model", BOOM),
    "a model by hub": ("model", HUB),
    "a loss": ("loss", OPEN),
    "negatives": ("evaluation.sampled", ZIP),
    "an optimizer": ("task.optimizer", {**BOOM, "_partial_": True}),
    "a task": ("task", BOOM),
    "a block": ("model.mamba", COPY),
    "a shop": ("dataset.shop", UNPICKLE),
    "in a list": ("dataset.user_bounds", [BOOM, None]),
    "in lists of lists": ("task.groups", {"short": [[0, [BOOM]], 1]}),
    "in a mapping of a list": ("task.ks", [{"deep": {"deeper": OPEN}}]),
    "positional": ("objective._args_", [BOOM]),
    "positional file": ("loss", {"_target_": "builtins.open", "_args_": ["MARKER", "w"]}),
    "not recursive": ("objective", {"_recursive_": False, **BOOM}),
    "a partial": ("model", {**BOOM, "_partial_": True}),
    "through one of our modules": ("model", HUB | {"_target_": "sigma.build.torch.hub.load"}),
    "a class through our modules": (
        "objective.x",
        {"_target_": "sigma.datamodules.locate.zipfile.ZipFile", "file": "MARKER", "mode": "w"},
    ),
    "through an optimizer's module": (
        "objective.x",
        OPEN | {"_target_": "torch.optim.adam.torch.serialization.io.open"},
    ),
    "a method of ours": (
        "task",
        {"_target_": "sigma.task.SequenceTask.load_from_checkpoint", **CHECKPOINT},
    ),
    "a method of Lightning's": (
        "objective.x",
        {"_target_": "lightning.LightningModule.load_from_checkpoint", **CHECKPOINT},
    ),
    "a function of ours": (
        "objective.x",
        {"_target_": "sigma.datamodules.download.os.mkdir", "path": "MARKER"},
    ),
    "a name that begins like ours": ("model", {"_target_": "sigma_planted.Boom"}),
    "a name that begins like torch's": ("model", {"_target_": "torch.optim_planted.Boom"}),
    "one word": ("model", {"_target_": "planted"}),
    "a relative name": ("model", {"_target_": ".planted.Boom"}),
    "a list for a name": ("model", {"_target_": ["planted.Boom"]}),
    "a name by interpolation": ("model._target_", "${dataset.name}"),
    "a name by a resolver": ("model._target_", "${oc.decode:planted.Boom}"),
    "a node by a resolver": ("model", "${oc.create:{_target_: planted.Boom}}"),
    "a pickle": ("objective.x", {"_target_": "pandas.read_pickle", "filepath_or_buffer": "PICKLE"}),
    "a folder": ("objective.x", {"_target_": "os.mkdir", "path": "MARKER"}),
    "a log": ("objective.x", {"_target_": "logging.FileHandler", "filename": "MARKER"}),
    "Hydra in Hydra": ("objective.x", {"_target_": "hydra.utils.call", "config": {"x": BOOM}}),
    "our class in another's place": (
        "objective.x",
        {"_target_": "sigma.callbacks.WandbLogger", "save_dir": "MARKER"},
    ),
    "our class that is no model": ("model", {"_target_": "sigma.runs.folder.RunFolder"}),
}

IN_COMMAND: dict[str, list[str]] = {
    "a model": ["model._target_=planted.Boom"],
    "a node": ["+callbacks.x={_target_: planted.Boom}"],
    "a key of nobody's": ["+x._target_=planted.Boom"],
    "a name in quotes": ["model._target_='planted.Boom'"],
    "in a list": ["+trainer.plugins=[{_target_: planted.Boom}]"],
    "an optimizer": ["task.optimizer._target_=planted.Boom"],
    "through one of our modules": ["loss._target_=sigma.build.torch.hub.load"],
    "Hydra's callbacks": ["+hydra.callbacks.x._target_=planted.Boom"],
    "Hydra's callbacks in a node": ["+hydra.callbacks={x: {_target_: planted.Boom}}"],
    "Hydra's launcher": ["hydra.mode=MULTIRUN", "hydra.launcher._target_=planted.Boom"],
    "Hydra's sweeper": ["hydra.mode=MULTIRUN", "hydra.sweeper._target_=planted.Boom"],
    "Hydra's search path": ["hydra.searchpath=[file://FOLDER/conf]", "+evil=x"],
    "Hydra's logs": ["+hydra.job_logging.handlers.x={'()': planted.boom}"],
    "Hydra's folder": ["hydra.output_subdir=MARKER"],
    "another package": ["+model@hydra.callbacks.x=sigma", "+x._target_=planted.Boom"],
    "an option elsewhere": ["experiment=OUT/evil/x"],
    "options elsewhere": ["experiment=[OUT/evil/x]"],
    "a flag for options": ["--config-dir=FOLDER/conf", "+evil=x"],
    "a short flag for options": ["-cd=FOLDER/conf", "+evil=x"],
    "a flag for the config": ["--config-path=FOLDER/conf", "--config-name=evil/x"],
    "a flag for a pickle": ["--experimental-rerun=PICKLE"],
    "an override that is a flag": ["seed=1", "--config-dir=FOLDER/conf", "+evil=x"],
    "where it is written": ["trainer.default_root_dir=MARKER"],
    "where a logger writes": ["logger=tensorboard", "logger.tensorboard.save_dir=MARKER"],
    "where a callback writes": [
        "+callbacks.x={_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: MARKER}"
    ],
    "a callback that deletes": [
        "+callbacks.x._target_=lightning.pytorch.callbacks.ModelCheckpoint"
    ],
    "a file name": [
        "+callbacks.x={_target_: lightning.pytorch.callbacks.ModelCheckpoint, filename: ../../x}"
    ],
    "the environment": ["dataset.name='${oc.env:SECRET}'"],
    "the environment in a list": ["tags=['${oc.env:SECRET}']"],
    "a name by interpolation": ["model._target_='${oc.decode:planted.Boom}'"],
    "what is no setting": ["]["],
}


class Malicious:
    """Leaves the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


def plant(folder: Path) -> Path:
    """Lay the stranger's code into a folder; the marker it would leave."""
    marker = folder / "marker"
    for name in ("planted.py", "sigma_planted.py", "hubconf.py"):
        (folder / name).write_text(PLANTED.format(marker=str(marker)))
    for name in ("conf/evil", "evil"):
        (folder / name).mkdir(parents=True)
        (folder / name / "x.yaml").write_text(HYDRA_CALLBACK)
    torch.save({"state_dict": Malicious(marker)}, folder / "pickle")
    return marker


def filled(text: str, folder: Path) -> str:
    """Text with the paths of an attack."""
    out = os.path.relpath(folder, CONF / "experiment")
    for word, path in (("MARKER", "marker"), ("PICKLE", "pickle"), ("FOLDER", "")):
        text = text.replace(word, str(folder / path))
    return text.replace("OUT", out)
