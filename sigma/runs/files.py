"""The files of a run's folder and of the checkout by name, and what is left or damaged there."""

import re
import zipfile
from pathlib import Path

from sigma.errors import excerpt

ROW = "row.json"  # the result, see ``sigma.runs.row``; a run that has it is finished
RANKS = "ranks.parquet"  # the target's rank of every test user
CONFIG = "config.json"  # the resolved config
COMMAND = "command.json"  # what was typed, and on which data; Hydra's own copy is of the last start
EPOCHS = "metrics.csv"
CURVES = "curves.png"
BEST = "checkpoints/best.ckpt"
LAST = "checkpoints/last.ckpt"
WANDB = "wandb.json"  # which W&B run this is
ITEMS = "items.parquet"  # raw ids of the model's items, in its order
ANCESTOR = "ancestor.json"  # the run whose weights it began from, see ``sigma.ancestor``
FAILURE = "failed.json"  # why a job of a sweep failed; the next start removes it
LOCK = ".lock"

# The package runs from a checkout, which has beside it:
CHECKOUT = Path(__file__).parents[2]
CONF = CHECKOUT / "conf"
SCRIPT = CHECKOUT / "train.py"


# What a killed process leaves of ``atomic_path``; earlier versions had the second name.
LEFTOVER = re.compile(r"\..+\.\d+\.partial|last\.partial")


def sweep(folder: Path) -> None:
    """Remove leftovers from a run's folder, which no other process may be at."""
    for place in (folder, (folder / LAST).parent):
        for path in place.glob("*.partial"):
            if LEFTOVER.fullmatch(path.name):
                path.unlink(missing_ok=True)


def damage(checkpoint: Path) -> str | None:
    """What is not as it was written; None where nothing of it is.

    PyTorch does not compare the sums in its archive. Marks that make a file of it something else,
    such as a folder, it obeys, and its own writer sets none.
    """
    with checkpoint.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            marked = (entry.filename for entry in archive.infolist() if entry.external_attr)
            name = archive.testzip() or next(marked, None)
        except Exception as error:  # damaged bytes fail in many ways
            return excerpt(error) or type(error).__name__
    return None if name is None else f"in {excerpt(name)}"


def anew(checkpoint: Path) -> str:
    """What to do with a run whose checkpoint is of no use."""
    folder = checkpoint.parents[1]
    if (folder / ROW).is_file():
        return f"{folder} keeps its row; train the run anew in another folder (hydra.run.dir=…)"
    return f"delete {checkpoint.parent}, and the run's command starts it anew"
