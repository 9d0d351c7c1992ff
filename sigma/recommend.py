"""What a trained model recommends: ``python -m sigma.recommend run=<folder> users=5050,12 k=10``.

Data and model are built again from the run's ``config.json`` and the weights are those of its best
checkpoint. Each user is asked for at the test target, from all history before it, and scored in the
very batches of the test, so that ranks equal those of the run's ``ranks.parquet`` to the last one
(on the machine and device of the run; elsewhere rounding may swap neighbours).
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sigma.build import accelerator, build, set_precision
from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.titles import titles_of
from sigma.errors import UserError
from sigma.ranking.metrics import target_ranks
from sigma.ranking.scores import all_scores
from sigma.runs.files import BEST, CONFIG, ROW
from sigma.runs.identity import current
from sigma.runs.messages import explained
from sigma.runs.row import Row
from sigma.task import SequenceTask


class TrainedRun(NamedTuple):
    """A run as it was when it was tested: config, data, and the task with its best weights."""

    folder: Path
    config: DictConfig
    data: SequenceDataModule
    task: SequenceTask

    @property
    def sequences(self) -> Sequences:
        assert self.data.sequences is not None
        return self.data.sequences


def load(run: Path, path: str | None = None) -> TrainedRun:
    """Build a run's data and model and load its best checkpoint, on the CPU.

    Args:
        run: its folder.
        path: raw data, in place of the config's ``dataset.path``.

    Raises:
        UserError: no run, no checkpoint, or data that is not what the run was trained on.
    """
    run = Path(run).expanduser()
    if not run.is_dir():
        raise UserError(f"There is no run folder {run}; name the folder a run was written to.")
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is not the folder of a run: it holds no {CONFIG}.")
    if not (run / BEST).is_file():
        raise UserError(
            f"{run} holds no {BEST}: its first epoch did not end; go on with "
            f"python train.py resume={run}."
        )
    config: Any = OmegaConf.create(current(json.loads((run / CONFIG).read_text())))
    if path is not None:
        config.dataset.path = str(path)
    config.task.compile = False  # costs more than it saves here
    with isolate_rng():  # building seeds
        data, task = build(config)
    _check_counts(run, data)
    try:
        weights = torch.load(run / BEST, map_location="cpu", weights_only=True)["state_dict"]
        task.load_state_dict(weights)
    except Exception as error:  # a damaged file fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{run / BEST} does not fit its run's config and data ({reason})."
        ) from error
    return TrainedRun(run, config, data, task.eval())


def _check_counts(run: Path, data: SequenceDataModule) -> None:
    """The data's counts must be those in the run's row, if it has one."""
    if not (run / ROW).is_file():
        return
    before = Row.read(run / ROW).data
    for name in ("users", "items", "interactions"):
        count, now = getattr(before, name), getattr(data.statistics, name)
        if count != now:
            raise UserError(
                f"{run} was trained on {count:,} {name}, but its data now holds {now:,}; name the "
                "file it was trained on with path=."
            )


def recommend(
    run: Path | TrainedRun,
    users: Sequence[str] | None = None,
    k: int = 10,
    mask_history: bool | None = None,
) -> pd.DataFrame:
    """The first ``k`` of all items for users' next item in the test.

    Args:
        run: its folder, or what ``load`` made of it.
        users: raw ids; None for every user of the test.
        k: places; there are fewer where fewer items are ranked.
        mask_history: leave the history out of the ranking; None is as in the run's test.

    Returns:
        A line for each place of each test target, users in the order asked for: ``user``,
        ``place`` from 1, ``item``, ``score``, ``target``, ``rank`` of the target among all items
        (expected over the order of ties), ``history_length``, ``greater`` and ``ties`` (see
        ``sigma.task.Ranks``). Ids are raw, as text. Items of equal score stand in the order of
        their first appearance in the data.

    Raises:
        UserError: no such run, checkpoint or user, or ``k`` below 1.
    """
    if k < 1:
        raise UserError(f"k={k} must be at least 1.")
    trained = run if isinstance(run, TrainedRun) else load(run)
    indices = user_indices(trained.data, users)
    parts = list(_score(trained, indices, k, mask_history))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    place = np.empty(trained.sequences.num_users, dtype=np.int64)
    place[indices] = np.arange(len(indices))
    order = np.lexsort((columns["history_length"], place[columns["user"]]))
    columns = {name: column[order] for name, column in columns.items()}
    top, scores = columns.pop("top"), columns.pop("scores")
    line, rank = np.nonzero(~np.isneginf(scores))
    user_ids, item_ids = (
        np.array([str(raw) for raw in ids], dtype=object)
        for ids in (trained.sequences.user_ids, trained.sequences.item_ids)
    )
    target = {name: column[line] for name, column in columns.items()}
    return pd.DataFrame(
        {
            "user": user_ids[target["user"]],
            "place": rank + 1,
            "item": item_ids[top[line, rank]],
            "score": scores[line, rank],
            "target": item_ids[target["target"] - 1],
            "rank": target["greater"] + 1 + target["ties"] / 2,
            "history_length": target["history_length"],
            "greater": target["greater"],
            "ties": target["ties"],
        }
    )


def user_indices(data: SequenceDataModule, users: Sequence[str] | None) -> np.ndarray:
    """Indices of users that the test asks for, each once, in the order of ``users`` (raw ids).

    Raises:
        UserError: an id that is not in the data, or whose history is too short for a test.
    """
    assert data.sequences is not None
    assert data.split is not None
    offsets = data.sequences.offsets
    tested = np.unique(np.searchsorted(offsets, data.split.test, side="right") - 1)
    if users is None:
        return tested
    index = {str(raw): i for i, raw in enumerate(data.sequences.user_ids)}
    indices = []
    for user in dict.fromkeys(map(str, users)):
        if user not in index:
            raise UserError(
                f"There is no user {user} among the {len(index):,} of {data.name} after its "
                f"filter; there are such as {', '.join(list(index)[:3])}."
            )
        indices.append(index[user])
    absent = np.setdiff1d(indices, tested)
    if len(absent):
        raise UserError(
            f"User {data.sequences.user_ids[absent[0]]} has no item in the test of {data.name}."
        )
    return np.array(indices, dtype=np.int64)


def _score(
    run: TrainedRun, users: np.ndarray, k: int, mask_history: bool | None
) -> Iterator[dict[str, np.ndarray]]:
    """Of test targets of some users: who and what, its rank, the first k and their scores."""
    config, data, task = run.config, run.data, run.task
    masked, precision = data.mask_history, torch.get_float32_matmul_precision()
    name = config.trainer.accelerator
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        name = "auto"
    fabric = L.Fabric(accelerator=accelerator(name), devices=1, precision=config.trainer.precision)
    indices = torch.from_numpy(users).to(fabric.device)
    try:
        data.mask_history = masked if mask_history is None else mask_history
        set_precision(config.matmul_precision)
        fabric.setup_module(task)  # moves it to the device and to its precision
        with torch.inference_mode(), fabric.autocast():
            for batch in data.test_dataloader():
                batch = move_data_to_device(batch, fabric.device)
                mask = torch.isin(batch.users, indices)
                if not mask.any():
                    continue
                states = task.model(batch.items, batch.rows, batch.places)
                for chunk, scores in all_scores(task.model, batch, states):
                    lines = mask[chunk].nonzero().squeeze(1)
                    scores, targets = scores[lines], batch.targets[chunk][lines]
                    greater, ties = target_ranks(scores, targets)
                    # Not topk: it orders ties as it likes. A score that is none comes last.
                    scores = scores.nan_to_num(float("-inf"), float("inf"), float("-inf"))
                    values, top = scores.sort(dim=1, descending=True, stable=True)
                    part: dict[str, Tensor] = {
                        "user": batch.users[chunk][lines],
                        "target": targets,
                        "history_length": batch.history_lengths[chunk][lines],
                        "greater": greater,
                        "ties": ties,
                        "top": top[:, :k],
                        "scores": values[:, :k],
                    }
                    yield {name: column.cpu().numpy() for name, column in part.items()}
    finally:
        data.mask_history = masked
        set_precision(precision)


def show(table: pd.DataFrame, data: Sequences) -> None:
    """Print a part for each user and target, with titles where they are known."""
    titles = {item: title.title for item, title in titles_of(data).items()}
    for (user, length), part in table.groupby(["user", "history_length"], sort=False):
        target, rank = part["target"].iloc[0], part["rank"].iloc[0]
        title = f" ({titles[target]})" if target in titles else ""
        print(f"User {user}, {length} items: the next one is {target}{title}, rank {rank:g}")
        lines = part[["place", "item", "score"]].assign(
            title=part["item"].map(titles).fillna(""),
            target=np.where(part["item"] == target, "*", ""),
        )
        print(lines.to_string(index=False), end="\n\n")


def parser() -> argparse.ArgumentParser:
    """The command line's options; ``run=a`` is as good as ``--run=a``."""
    options = argparse.ArgumentParser("python -m sigma.recommend", description=__doc__)
    options.add_argument("--run", type=Path, required=True, help="the run's folder")
    options.add_argument("--users", help="raw ids, parted by commas; else all of the test, to out")
    options.add_argument("--k", type=int, default=10, help="places")
    options.add_argument(
        "--mask_history", type=str.lower, choices=("true", "false"), help="else as in the test"
    )
    options.add_argument("--path", help="the raw data, where it does not lie any more where it was")
    options.add_argument("--out", type=Path, help="CSV to write, instead of printing")
    return options


def main(arguments: Sequence[str]) -> None:
    options = parser().parse_args([a if a.startswith("-") else f"--{a}" for a in arguments])
    with explained():
        if options.users is None and options.out is None:
            raise UserError("Name users with users=5050,12, or write all users' with out=file.csv.")
        run = load(options.run, options.path)
        users = None if options.users is None else options.users.split(",")
        masked = None if options.mask_history is None else options.mask_history == "true"
        table = recommend(run, users, options.k, masked)
        if options.out is None:
            show(table, run.sequences)
            return
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out, index=False)
        targets = len(table[["user", "history_length"]].drop_duplicates())
        print(f"{targets:,} test targets, {len(table):,} recommendations: {options.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
