"""What a trained model recommends: ``python -m sigma.recommend run=<folder> users=5050,12 k=10``.

Data and model are built again from the run's ``config.json`` and the weights are those of its best
checkpoint. Each user is asked for at the test target, from all history before it, and scored in the
very batches of the test, so that ranks equal those of the run's ``ranks.parquet`` to the last one
(on the machine and device of the run; elsewhere rounding may swap neighbours).

    run           the run's folder
    users         raw ids, parted by commas; without it all users of the test, which needs out
    k             places, 10 unless told
    mask_history  true or false; without it as in the run's test
    path          the raw data, where it does not lie any more where the run found it
    out           CSV to write, instead of the tables that are printed
"""

import sigma.environment  # noqa: F401  isort: skip

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.table import Table
from torch import Tensor

from sigma.build import accelerator, build, set_precision
from sigma.callbacks.tables import show
from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.titles import titles_of
from sigma.errors import UserError
from sigma.ranking.metrics import target_ranks
from sigma.runs.identity import current
from sigma.runs.messages import explained
from sigma.task import SequenceTask

OPTIONS = ("run", "users", "k", "mask_history", "path", "out")


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
    saved, best = run / "config.json", run / "checkpoints" / "best.ckpt"
    if not run.is_dir():
        raise UserError(f"There is no run folder {run}; name the folder a run was written to.")
    if not saved.is_file():
        raise UserError(f"{run} is not the folder of a run: it holds no config.json.")
    if not best.is_file():
        raise UserError(
            f"{run} holds no checkpoints/best.ckpt: its first epoch did not end; go on with "
            f"python train.py resume={run}."
        )
    config: Any = OmegaConf.create(current(json.loads(saved.read_text())))
    if path is not None:
        config.dataset.path = str(path)
    config.task.compile = False  # costs more than it saves here
    with isolate_rng():  # building seeds
        data, task = build(config)
    _check_counts(run, data)
    try:
        weights = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
        task.load_state_dict(weights)
    except Exception as error:  # a damaged file fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{best} does not fit its run's config and data ({reason}).") from error
    return TrainedRun(run, config, data, task.eval())


def _check_counts(run: Path, data: SequenceDataModule) -> None:
    """The data's counts must be those in the run's row, if it has one."""
    if not (run / "row.json").is_file():
        return
    told = json.loads((run / "row.json").read_text())["data"]
    for what in ("users", "items", "interactions"):
        if told[what] != getattr(data.statistics, what):
            raise UserError(
                f"{run} was trained on {told[what]:,} {what}, but its data now holds "
                f"{getattr(data.statistics, what):,}; name the file it was trained on with path=."
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
    loaded = run if isinstance(run, TrainedRun) else load(run)
    wanted = user_indices(loaded.data, users)
    found = _score(loaded, wanted, k, mask_history)
    order = pd.DataFrame({"user": found["users"], "length": found["history_lengths"]})
    asked = np.empty(loaded.sequences.num_users, dtype=np.int64)
    asked[wanted] = np.arange(len(wanted))
    order["asked"] = asked[order["user"].to_numpy()]
    rows = order.sort_values(["asked", "length"], kind="stable").index.to_numpy()
    top, scores = found["top"][rows], found["scores"][rows]
    row, column = np.nonzero(~np.isneginf(scores))
    user_ids = np.array([str(u) for u in loaded.sequences.user_ids], dtype=object)
    item_ids = np.array([str(i) for i in loaded.sequences.item_ids], dtype=object)
    greater, ties = found["greater"][rows], found["ties"][rows]
    return pd.DataFrame(
        {
            "user": user_ids[found["users"][rows]][row],
            "place": column + 1,
            "item": item_ids[top[row, column]],
            "score": scores[row, column],
            "target": item_ids[found["targets"][rows] - 1][row],
            "rank": (greater + 1 + ties / 2)[row],
            "history_length": found["history_lengths"][rows][row],
            "greater": greater[row],
            "ties": ties[row],
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
    chosen = []
    for user in dict.fromkeys(map(str, users)):
        if user not in index:
            raise UserError(
                f"There is no user {user} among the {len(index):,} of {data.name} after its "
                f"filter; there are such as {', '.join(list(index)[:3])}."
            )
        chosen.append(index[user])
    absent = np.setdiff1d(chosen, tested)
    if len(absent):
        raise UserError(
            f"User {data.sequences.user_ids[absent[0]]} has no item in the test of {data.name}."
        )
    return np.array(chosen, dtype=np.int64)


def _score(
    run: TrainedRun, wanted: np.ndarray, k: int, mask_history: bool | None
) -> dict[str, np.ndarray]:
    """Of each test target of some users: who and what, its rank, the first k and their scores."""
    config, data, task = run.config, run.data, run.task
    masked, precision = data.mask_history, torch.get_float32_matmul_precision()
    name = config.trainer.accelerator
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        name = "auto"
    fabric = L.Fabric(accelerator=accelerator(name), devices=1, precision=config.trainer.precision)
    chosen = torch.from_numpy(wanted).to(fabric.device)
    parts: dict[str, list[Tensor]] = {}
    try:
        data.mask_history = masked if mask_history is None else mask_history
        set_precision(config.matmul_precision)
        fabric.setup_module(task)  # moves it to the device and to its precision
        with torch.inference_mode(), fabric.autocast():
            for batch in data.test_dataloader():
                batch = move_data_to_device(batch, fabric.device)
                ours = torch.isin(batch.users, chosen)
                if not ours.any():
                    continue
                for chunk, scores in task.all_scores(batch, task.states(batch)):
                    mine = ours[chunk].nonzero().squeeze(1)
                    if not len(mine):
                        continue
                    scores, targets = scores[mine], batch.targets[chunk][mine]
                    greater, ties = target_ranks(scores, targets)
                    # Not topk: it orders ties as it likes. A score that is none comes last.
                    told = scores.nan_to_num(float("-inf"), float("inf"), float("-inf"))
                    values, top = told.sort(dim=1, descending=True, stable=True)
                    for name, part in {
                        "users": batch.users[chunk][mine],
                        "targets": targets,
                        "history_lengths": batch.history_lengths[chunk][mine],
                        "greater": greater,
                        "ties": ties,
                        "top": top[:, :k],
                        "scores": values[:, :k],
                    }.items():
                        parts.setdefault(name, []).append(part.cpu())
    finally:
        data.mask_history = masked
        set_precision(precision)
    return {name: torch.cat(part).numpy() for name, part in parts.items()}


def tables(found: pd.DataFrame, data: Sequences) -> list[Table]:
    """One a user and target, with titles where they are known."""
    titles = titles_of(data)

    def title(item: str) -> str:
        return titles[item].title if item in titles else ""

    made = []
    for (user, length), part in found.groupby(["user", "history_length"], sort=False):
        target, rank = part["target"].iloc[0], part["rank"].iloc[0]
        told = f" ({title(target)})" if title(target) else ""
        table = Table(
            title=f"User {user}, {length} items: the next one is {target}{told}, rank {rank:g}",
            box=box.ROUNDED,
        )
        for name in ("place", "item", "score"):
            table.add_column(name, justify="right")
        table.add_column("title")
        for place, item, score in zip(part["place"], part["item"], part["score"], strict=True):
            mark = "*" if item == target else ""
            table.add_row(f"{place}{mark}", item, f"{score:.4f}", title(item))
        made.append(table)
    return made


def options(arguments: Sequence[str]) -> dict[str, str]:
    """``key=value`` settings of the command line.

    Raises:
        UserError: a key that is none, or one that is missing.
    """
    given = {}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign or key not in OPTIONS:
            raise UserError(
                f"Cannot read '{argument}'; settings are {', '.join(f'{o}=…' for o in OPTIONS)}."
            )
        given[key] = value
    if "run" not in given:
        raise UserError("Name the run's folder with run=….")
    if "users" not in given and "out" not in given:
        raise UserError("Name users with users=5050,12, or write all users' with out=file.csv.")
    if not given.get("k", "1").isdigit():
        raise UserError(f"k={given['k']} must be a whole number from 1.")
    if given.get("mask_history", "true").lower() not in ("true", "false"):
        raise UserError(f"mask_history={given['mask_history']} must be true or false.")
    return given


def main(arguments: Sequence[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    with explained():
        given = options(arguments)
        run = load(Path(given["run"]), given.get("path"))
        users = given["users"].split(",") if "users" in given else None
        masked = given["mask_history"].lower() == "true" if "mask_history" in given else None
        found = recommend(run, users, int(given.get("k", 10)), masked)
        if "out" in given:
            out = Path(given["out"])
            out.parent.mkdir(parents=True, exist_ok=True)
            found.to_csv(out, index=False)
            print(f"{found[['user', 'history_length']].drop_duplicates().shape[0]:,} test targets, "
                  f"{len(found):,} recommendations: {out}")  # fmt: skip
            return
        for table in tables(found, run.sequences):
            show(table)


if __name__ == "__main__":
    main(sys.argv[1:])
