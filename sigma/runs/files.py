"""The files of a run's folder and of the checkout by name, and how one is written safely."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROW = "row.json"  # the result, see ``sigma.runs.row``; a run that has it is finished
RANKS = "ranks.parquet"  # the target's rank of every test user
CONFIG = "config.json"  # the resolved config
COMMAND = "command.json"  # what was typed, and on which data; Hydra's own copy is of the last start
EPOCHS = "metrics.csv"
CURVES = "curves.png"
BEST = "checkpoints/best.ckpt"
LAST = "checkpoints/last.ckpt"
WANDB = "wandb.json"  # which W&B run this is
FAILURE = "failed.json"  # why a job of a sweep failed; the next start removes it
LOCK = ".lock"

# The package runs from a checkout, which has beside it:
CHECKOUT = Path(__file__).parents[2]
CONF = CHECKOUT / "conf"
SCRIPT = CHECKOUT / "train.py"


def replace(partial: Path, path: Path) -> None:
    """Give a finished file its name: a power loss leaves the older or the newer one, whole."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which takes its name at the end; nothing on an error.

    The folder is made. Two processes at the same file do not meet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
