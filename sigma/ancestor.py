"""Going on from a run with newer data: ``python train.py init_from=<run> dataset.path=newer.csv``.

Weights are the ancestor's, those of an item by its raw id; new items keep the draw of a new model.
Optimizer, epochs and random numbers start anew.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sigma import checkpoints
from sigma.datamodules.base import SequenceDataModule
from sigma.errors import UserError, excerpt, listed
from sigma.files import atomic_path
from sigma.runs.files import ANCESTOR, BEST, ITEMS
from sigma.runs.identity import run_id
from sigma.runs.records import read_config
from sigma.task import SequenceTask

log = logging.getLogger(__name__)


class Ancestor(NamedTuple):
    """A run that another one goes on from."""

    folder: Path
    run: str  # its id
    items: pd.Index  # raw ids of items 1 … K, as text
    weights: dict[str, Tensor]  # of the model, by parameter and buffer
    digest: str  # of its checkpoint


def write_items(folder: Path, data: SequenceDataModule) -> None:
    """Keep the raw ids of a run's items beside it, in the order of the model's."""
    frame = pd.DataFrame({"item": data.sequences.catalogue})
    with atomic_path(folder / ITEMS) as partial:
        frame.to_parquet(partial, index=False, compression="zstd")


def read_ancestor(folder: Path) -> Ancestor:
    """The run of a folder, of which nothing is built.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = folder.expanduser()
    config, best = read_config(folder), folder / BEST
    if not (folder / ITEMS).is_file():
        raise UserError(
            f"init_from={folder} holds no {ITEMS}, which tells the items of its weights (a run of "
            "an earlier version); resume it once with trainer.max_epochs one higher."
        )
    content = checkpoints.read(best)
    try:
        items = pd.Index(pq.read_table(folder / ITEMS)["item"].to_pandas(), dtype=object)
        weights = {n.removeprefix("model."): value for n, value in content["state_dict"].items()}
    except Exception as error:  # what is damaged fails in many ways
        raise UserError(
            f"init_from={folder}: {ITEMS} or {BEST} cannot be read ({excerpt(error)}); "
            "take another run."
        ) from error
    digest = hashlib.blake2b(best.read_bytes(), digest_size=8).hexdigest()
    return Ancestor(folder, run_id(config), items, weights, digest)


def by_item(new: Tensor, old: Tensor, first: int, places: Tensor, known: Tensor) -> Tensor:
    """``new`` with the rows of ``old``: of known items, and those before and after all items.

    Args:
        new, old: (first + items + others, …).
        first: row of item 1.
        places: (K,) the old item of each new one, from 0, or -1.
        known: (K,) whether there is one.
    """
    result, others = new.clone(), len(new) - first - len(places)
    result[:first] = old[:first]
    result[len(new) - others :] = old[len(old) - others :]
    result[first : len(new) - others][known] = old[first + places[known]]
    return result


def inherit(task: SequenceTask, data: SequenceDataModule, ancestor: Ancestor) -> dict[str, Any]:
    """Give the model its ancestor's weights; what the row says of it.

    Raises:
        UserError: another model, or none that learns, or no item in common.
    """
    model, where = task.model, f"init_from={ancestor.folder}"
    if model.counted:
        raise UserError(f"{model.name} counts the data anew each time; leave init_from out.")
    ids = data.sequences.catalogue
    places = torch.from_numpy(ancestor.items.get_indexer(ids))
    known = places >= 0
    if not known.any():
        raise UserError(
            f"{where} knows none of the items of {data.name} (but such as "
            f"{listed(ancestor.items[:3])}); give data with the same ids."
        )
    mine, rows = model.state_dict(), model.item_rows()
    theirs = {name: value for name, value in ancestor.weights.items() if name in mine}
    for name, value in mine.items():
        old, first = theirs.get(name), rows.get(name)
        if old is None or old.shape[first is not None :] != value.shape[first is not None :]:
            shape = None if old is None else tuple(old.shape)
            raise UserError(
                f"{where} is of another model: its {name} is {shape} where this model's is "
                f"{tuple(value.shape)}; give the settings of that run."
            )
        if first is not None:
            theirs[name] = by_item(value, old, first, places, known)
    model.load_state_dict(theirs)
    number = int(known.sum())
    log.info(
        "Weights of %s, of %s of its %s items; %s new ones are drawn.",
        *(ancestor.run, f"{number:,}", f"{len(ancestor.items):,}", f"{len(ids) - number:,}"),
    )
    return {
        "run": ancestor.run,
        "weights": ancestor.digest,
        "known_items": number,
        "new_items": len(ids) - number,
    }


def begin_from(folder: Path, run: Path, task: SequenceTask, data: SequenceDataModule) -> None:
    """``inherit`` from another run, noted in a run's folder for its row."""
    content = inherit(task, data, read_ancestor(run))
    with atomic_path(folder / ANCESTOR) as partial:
        partial.write_text(json.dumps(content, indent=1))
