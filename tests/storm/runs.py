"""The small runs the storm works on, and when two of them are the same to the last bit."""

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from sigma.runs.files import EPOCHS, RANKS, ROW
from sigma.runs.row import Row
from tests.storm.forks import End, run, train
from tests.storm.part import Part

MODELS = {
    "sigma": ("model=sigma", "model.mamba.state_size=4"),
    "gru4rec": ("model=gru4rec",),
    "sasrec": ("model=sasrec",),
}
TINY = (
    *("dataset=custom", "dataset.batch_size=512", "dataset.max_length=12", "logger=none"),
    *("model.hidden_size=8", "task.optimizer.lr=0.05"),
    "callbacks.last.every_seconds=0.001",  # a checkpoint after every step
)
LIMIT = 60.0  # seconds that no start takes


def typed(part: Part, model: str, *overrides: str) -> list[str]:
    """The command line of a run, without its folder."""
    places = f"dataset.path={part.data}", f"dataset.root={part.root}"
    return [*MODELS[model], *TINY, *places, *overrides]


def reference(part: Part, model: str, folder: Path, *overrides: str) -> End:
    """A run that nobody disturbs, in ``folder``; its end.

    Raises:
        RuntimeError: it fails.
    """
    place = f"hydra.run.dir={folder}"
    end = run(train(*typed(part, model, *overrides), place), part.log, limit=10 * LIMIT)
    if end.code:
        raise RuntimeError(f"an undisturbed run of {model} failed: {end.output[-500:]}")
    return end


def result(folder: Path) -> dict[str, Any]:
    """What the row of a run says of its result; without times, versions and places."""
    row = Row.read(folder / ROW)
    passing = ("efficiency", "versions", "hardware", "git", "finished", "config")
    content = {name: value for name, value in row.content().items() if name not in passing}
    return content | {"run_id": row.run_id}


def same_row(a: Path, b: Path) -> bool:
    """Whether two finished runs have the same result: row and every user's rank."""
    return result(a) == result(b) and pd.read_parquet(a / RANKS).equals(pd.read_parquet(b / RANKS))


def same_epochs(a: Path, b: Path) -> bool:
    return (a / EPOCHS).read_bytes() == (b / EPOCHS).read_bytes()


def leftovers(folder: Path) -> list[str]:
    """Files that a kill left behind half written."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return [name for name in names if name.endswith((".partial", ".part", ".tmp"))]


def follow(end: End, path: Path, folder: Path) -> bool:
    """Delete what a refusal says may be deleted, of a run's folder; whether it says so."""
    advice = re.search(r"delete (it|\S+?)[,;]", end.output)
    if advice is None:
        return False
    place = path if advice[1] == "it" else Path(advice[1])
    if not place.is_relative_to(folder) or place == folder:
        return False
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    return True


def copy(folder: Path, place: Path) -> Path:
    """A copy of a run's folder at ``place``, whatever was there."""
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(folder, place))
