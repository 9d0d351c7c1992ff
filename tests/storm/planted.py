"""Ways to plant code in a run's folder. Each leaves a mark where it is executed."""

import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sigma.runs.files import BEST, COMMAND, CONFIG, LAST, ROW
from tests.runs import attacks
from tests.storm.forks import Action, recommend, train

OLDER = ".hydra/overrides.yaml"


class Way(NamedTuple):
    """What is planted where, and who comes by.

    Attributes:
        name: in words.
        plant: puts it into a run's folder; the second folder is the stranger's own.
        visit: what a user does with the run's folder.
    """

    name: str
    plant: Callable[[Path, Path], None]
    visit: Callable[[Path], Action]


def write_lure(folder: Path) -> Path:
    """Fill the stranger's own folder, in which the user happens to stand; the marker's path."""
    marker, evil = attacks.plant(folder), attacks.Malicious(folder / "marker")
    (folder / "plain").write_bytes(pickle.dumps(evil))
    np.save(folder / "array.npy", np.array([evil], dtype=object), allow_pickle=True)
    return marker


# What builds or loads code, by the arguments that make it do so.
NODES: dict[str, dict[str, Any]] = {
    "torch.hub.load": {"repo_or_dir": "FOLDER", "source": "local", "model": "m"},
    "pandas.read_pickle": {"filepath_or_buffer": "FOLDER/plain"},
    "builtins.open": {"file": "MARKER", "mode": "w"},
    "joblib.load": {"filename": "FOLDER/plain"},
    "os.system": {"command": "touch MARKER"},
    "numpy.load": {"file": "FOLDER/array.npy", "allow_pickle": True},
    "shutil.copy": {"src": "PICKLE", "dst": "MARKER"},
    "torch.load": {"f": "PICKLE", "weights_only": False},
    "subprocess.run": {"args": ["touch", "MARKER"]},
    "pathlib.Path.touch": {"_args_": ["MARKER"]},
    "builtins.exec": {"_args_": ["import planted"]},
    "torch.save": {"obj": 1, "f": "MARKER"},
    "runpy.run_path": {"path_name": "FOLDER/planted.py"},
    "sigma.task.SequenceTask.load_from_checkpoint": {"checkpoint_path": "PICKLE"},
    "lightning.fabric.utilities.cloud_io._load": {"path_or_url": "PICKLE", "weights_only": False},
    "hydra.utils.instantiate": {"config": {"_target_": "os.system", "command": "touch MARKER"}},
}
# Where in a config a node is built: beside what is there, or in its place.
PLACES = (
    *("objective.x", "objective", "dataset.x", "dataset", "loss.x", "loss", "model.x", "model"),
    *("model.mamba", "evaluation.sampled", "task.x", "task.optimizer", "task"),
    *("callbacks.x", "logger.x", "trainer.profiler", "trainer"),
)


def asked(folder: Path) -> Action:
    return recommend(f"run={folder}", "users=1")


def resumed(folder: Path) -> Action:
    return train(f"resume={folder}", "trainer.max_epochs=3")


def beside(lure: Path, action: Action) -> Action:
    """The action of somebody who stands in the stranger's folder."""

    def standing() -> object:
        os.chdir(lure)
        sys.path.insert(0, str(lure))
        return action()

    return standing


def in_config(name: str, place: str, value: Any) -> Way:
    def plant(folder: Path, lure: Path) -> None:
        config = node = json.loads((folder / CONFIG).read_text())
        *groups, last = place.split(".")
        for group in groups:
            node = node[group]
        node[last] = json.loads(attacks.filled(json.dumps(value), lure))
        (folder / CONFIG).write_text(json.dumps(config))

    return Way(f"{CONFIG}: {name} at {place}", plant, asked)


def grammar(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{grammar(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(grammar, value)) + "]"
    return str(value).lower() if isinstance(value, bool | int) else f"'{value}'"


def in_command(name: str, words: list[str], older: bool) -> Way:
    """More in what the run says was typed; in the older file only where the newer is not."""

    def plant(folder: Path, lure: Path) -> None:
        here = [attacks.filled(word, lure) for word in words]
        flags = [word for word in here if word.startswith("-")] if here[0][0] == "-" else []
        command = json.loads((folder / COMMAND).read_text())
        overrides = [*command["overrides"], *(word for word in here if word not in flags)]
        (folder / ROW).unlink()
        if older:
            (folder / COMMAND).unlink()
            (folder / OLDER).parent.mkdir(exist_ok=True)
            (folder / OLDER).write_text("".join(f"- {json.dumps(o)}\n" for o in overrides))
        else:
            content = command | {"flags": command["flags"] + flags, "overrides": overrides}
            (folder / COMMAND).write_text(json.dumps(content))

    return Way(f"{OLDER if older else COMMAND}: {name}", plant, resumed)


def in_checkpoint(file: str, packed: bool, visit: Callable[[Path], Action], who: str) -> Way:
    """A pickle in the place of a checkpoint, or within one."""

    def plant(folder: Path, lure: Path) -> None:
        path, evil = (
            folder / file,
            pickle.dumps({"state_dict": attacks.Malicious(lure / "marker")}, 2),
        )
        (folder / ROW).unlink()
        if not packed:
            path.write_bytes(evil)
            return
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", evil)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")

    return Way(f"{file}: a pickle{' within' * packed}, {who}", plant, visit)


def in_hyperparameters() -> Way:
    """A checkpoint that torch reads and that names a class to build."""

    def plant(folder: Path, lure: Path) -> None:
        content = torch.load(folder / LAST, weights_only=True)
        node = {"_target_": "planted.boom", "_instantiator": "planted.boom"}
        content |= {"hyper_parameters": node, "datamodule_hyper_parameters": node}
        (folder / ROW).unlink()
        torch.save(content, folder / LAST)

    return Way(f"{LAST}: hyper-parameters", plant, resumed)


def ways() -> Iterator[Way]:
    """Those of the project's tests, every node somewhere, and two nodes in every place."""
    for name, (place, value) in attacks.IN_CONFIG.items():
        yield in_config(name, place, value)
    for name, words in attacks.IN_COMMAND.items():
        for older in (False, True):
            yield in_command(name, words, older)
    names = list(NODES)
    for number, place in enumerate(PLACES):
        for name in (names[0], names[1 + number % (len(names) - 1)]):
            node = {"_target_": name, **NODES[name]}
            yield in_config(name, place, node)
            yield in_command(f"{name} at {place}", [f"++{place}={grammar(node)}"], False)
    for packed in (False, True):
        yield in_checkpoint(LAST, packed, resumed, "resumed")
        yield in_checkpoint(BEST, packed, resumed, "tested")
        yield in_checkpoint(BEST, packed, asked, "recommended")
    yield in_hyperparameters()
