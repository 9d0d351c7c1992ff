"""Ways to plant code in a run's folder. Each leaves a mark where it is executed."""

import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sigma.runs.files import BEST, COMMAND, CONFIG, LAST, ROW
from tests.storm.forks import Action, recommend, train

SECRET = "STORM_SECRET"  # an environment variable that belongs into nobody's row


class Way(NamedTuple):
    """What is planted where, and who comes by.

    Attributes:
        name: in words.
        plant: puts it into a run's folder; ``mark`` is the file that it makes when it runs.
        visit: what a user does with the folder.
    """

    name: str
    plant: Callable[[Path, Path], None]
    visit: Callable[[Path], Action]


class Evil:
    """Its pickle runs a command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def nodes(folder: Path, mark: Path) -> dict[str, dict[str, Any]]:
    """Nodes of a config that run something when they are built, by name."""
    script, hub, pickled, array = (folder / n for n in ("evil.py", "hub", "evil.pkl", "evil.npy"))
    code, touch = f"open({str(mark)!r}, 'w').close()", f"touch {mark}"
    hub.mkdir(exist_ok=True)
    script.write_text(code)
    (hub / "hubconf.py").write_text(f"{code}\ndef m(*_, **__): return None\n")
    pickled.write_bytes(pickle.dumps(Evil(mark)))
    np.save(array, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    factory = {"()": "os.system", "command": touch}
    logging = {"version": 1, "handlers": {"x": factory}, "root": {"handlers": ["x"]}}
    targets: dict[str, dict[str, Any]] = {
        "torch.hub.load": {"repo_or_dir": str(hub), "source": "local", "model": "m"},
        "pandas.read_pickle": {"filepath_or_buffer": str(pickled)},
        "builtins.open": {"file": str(mark), "mode": "w"},
        "joblib.load": {"filename": str(pickled)},
        "os.system": {"command": touch},
        "numpy.load": {"file": str(array), "allow_pickle": True},
        "shutil.copy": {"src": str(script), "dst": str(mark)},
        "torch.load": {"f": str(pickled), "weights_only": False},
        "subprocess.run": {"args": ["touch", str(mark)]},
        "pathlib.Path.touch": {"_args_": [str(mark)]},
        "builtins.exec": {"_args_": [code]},
        "torch.save": {"obj": 1, "f": str(mark)},
        "runpy.run_path": {"path_name": str(script)},
        "sigma.task.SequenceTask.load_from_checkpoint": {
            **{"checkpoint_path": str(pickled), "weights_only": False}
        },
        "lightning.fabric.utilities.cloud_io._load": {
            **{"path_or_url": str(pickled), "weights_only": False}
        },
        "logging.config.dictConfig": {"config": logging},
        "hydra.utils.instantiate": {"config": {"_target_": "os.system", "command": touch}},
    }
    return {name: {"_target_": name, **rest} for name, rest in targets.items()}


# Where in a config a node is built: beside what is there, or in its place.
PLACES = (
    *("objective.x", "objective", "dataset.x", "dataset", "loss.x", "loss", "model.x", "model"),
    *("model.mamba", "evaluation.sampled", "task.x", "task.optimizer", "task"),
    *("callbacks.x", "logger.x", "trainer.profiler", "trainer"),
)


def put(config: dict[str, Any], place: str, node: dict[str, Any]) -> None:
    *groups, last = place.split(".")
    for group in groups:
        config = config[group]
    config[last] = node


def asked(folder: Path) -> Action:
    return recommend(f"run={folder}", "users=1")


def resumed(folder: Path) -> Action:
    return train(f"resume={folder}", "trainer.max_epochs=3")


def in_config(place: str, name: str) -> Way:
    def plant(folder: Path, mark: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        put(config, place, nodes(folder, mark)[name])
        (folder / CONFIG).write_text(json.dumps(config))

    return Way(f"{CONFIG}: {name} at {place}", plant, asked)


def grammar(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{grammar(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(grammar, value)) + "]"
    text = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return str(value).lower() if isinstance(value, bool) else f"'{text}'"


def with_overrides(folder: Path, file: str, *added: str, flags: tuple[str, ...] = ()) -> None:
    """Type more in what a run says was typed; in the older file only where the newer is not."""
    command = json.loads((folder / COMMAND).read_text())
    overrides = [*command["overrides"], *added]
    (folder / ROW).unlink(missing_ok=True)
    if file == COMMAND:
        content = command | {"overrides": overrides, "flags": [*command["flags"], *flags]}
        (folder / COMMAND).write_text(json.dumps(content))
    else:
        (folder / COMMAND).unlink()
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("".join(f"- {json.dumps(o)}\n" for o in overrides))


def in_overrides(file: str, place: str, name: str) -> Way:
    def plant(folder: Path, mark: Path) -> None:
        with_overrides(folder, file, f"++{place}={grammar(nodes(folder, mark)[name])}")

    return Way(f"{file}: {name} at {place}", plant, resumed)


def by_a_config_folder(kind: str) -> Way:
    """Options that the folder brings with it."""

    def plant(folder: Path, mark: Path) -> None:
        node = nodes(folder, mark)["torch.hub.load"]
        options = folder / "conf" / "loss"
        options.mkdir(parents=True)
        (options / "evil.yaml").write_text(json.dumps(node))
        place = str(options.parent)
        searched = (f"hydra.searchpath=[file://{place}]",) if kind == "searchpath" else ()
        flags = () if searched else (f"--config-dir={place}",)
        with_overrides(folder, COMMAND, *searched, "loss=evil", flags=flags)

    return Way(f"{COMMAND}: a config folder by {kind}", plant, resumed)


def by_logging() -> Way:
    """Python's logging builds handlers by any callable."""

    def plant(folder: Path, mark: Path) -> None:
        handler = {"()": "os.system", "command": f"touch {mark}"}
        place = folder / "conf" / "hydra" / "job_logging"
        place.mkdir(parents=True)
        content = {"version": 1, "handlers": {"x": handler}, "root": {"handlers": ["x"]}}
        (place / "evil.yaml").write_text(json.dumps(content))
        flags = (f"--config-dir={folder / 'conf'}",)
        with_overrides(folder, COMMAND, "hydra/job_logging=evil", flags=flags)

    return Way(f"{COMMAND}: logging's factory", plant, resumed)


def in_checkpoint(file: str, packed: bool, visit: Callable[[Path], Action], who: str) -> Way:
    """A pickle in the place of a checkpoint, or within one."""

    def plant(folder: Path, mark: Path) -> None:
        path, evil = folder / file, pickle.dumps({"state_dict": Evil(mark)}, protocol=2)
        (folder / ROW).unlink(missing_ok=True)
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

    def plant(folder: Path, mark: Path) -> None:
        content = torch.load(folder / LAST, weights_only=True)
        node = nodes(folder, mark)["os.system"]
        content |= {"hyper_parameters": node, "hparams_name": "kwargs"}
        content["datamodule_hyper_parameters"] = {"_instantiator": "os.system"}
        (folder / ROW).unlink(missing_ok=True)
        torch.save(content, folder / LAST)

    return Way(f"{LAST}: hyper-parameters", plant, resumed)


def ways() -> Iterator[Way]:
    """All of them."""
    with tempfile.TemporaryDirectory() as folder:
        names = list(nodes(Path(folder), Path(folder) / "mark"))
    for number, place in enumerate(PLACES):
        for name in (*names[:2], names[2 + number % (len(names) - 2)]):
            yield in_config(place, name)
            yield in_overrides(COMMAND, place, name)
    for name in names:
        yield in_config("objective.x", name)
        yield in_overrides(COMMAND, "callbacks.x", name)
    for file in (COMMAND, ".hydra/overrides.yaml"):
        for place in (
            "loss",
            "callbacks.x",
            "hydra.callbacks.x",
            "hydra.launcher",
            "hydra.sweeper",
        ):
            yield in_overrides(file, place, "torch.hub.load")
    yield from (by_a_config_folder("--config-dir"), by_a_config_folder("searchpath"), by_logging())
    for packed in (False, True):
        yield in_checkpoint(LAST, packed, resumed, "resumed")
        yield in_checkpoint(BEST, packed, resumed, "tested")
        yield in_checkpoint(BEST, packed, asked, "recommended")
    yield in_hyperparameters()
