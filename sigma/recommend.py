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
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sigma.build import accelerator, build, set_precision
from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.titles import titles_of
from sigma.errors import UserError, excerpt, listed
from sigma.ranking.metrics import target_ranks
from sigma.ranking.scores import Seen, all_scores
from sigma.runs.files import BEST, CONFIG
from sigma.runs.folder import check_data
from sigma.runs.identity import current
from sigma.runs.messages import explained
from sigma.spreadsheet import note, write_csv
from sigma.task import SequenceTask

WIDEST = 80  # characters of an id or a title on the terminal


class TrainedRun(NamedTuple):
    """A run as it was when it was tested: config, data, and the task with its best weights."""

    folder: Path
    config: DictConfig
    data: SequenceDataModule
    task: SequenceTask

    @property
    def sequences(self) -> Sequences:
        return self.data.sequences


def load(run: Path, path: str | None = None) -> TrainedRun:
    """Build the data and model of a run's folder and load its best checkpoint, on the CPU.

    Raises:
        UserError: no run, no checkpoint, or data that is not what the run was trained on.
    """
    run = Path(run).expanduser()
    for name, reason in (
        (CONFIG, "it is not the folder of a run"),
        (BEST, f"its first epoch did not end; go on with python train.py resume={run}"),
    ):
        if not (run / name).is_file():
            raise UserError(f"{run} holds no {name}: {reason}.")
    config: Any = OmegaConf.create(current(json.loads((run / CONFIG).read_text())))
    if path is not None:
        config.dataset.path = str(path)
    config.task.compile = False  # costs more than it saves here
    with isolate_rng():  # building seeds
        data, task = build(config)
    check_data(run, data)
    try:
        weights = torch.load(run / BEST, map_location="cpu", weights_only=True)["state_dict"]
        task.load_state_dict(weights)
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(f"{run / BEST} does not fit its run's config and data.") from error
    return TrainedRun(run, config, data, task.eval())


def recommend(
    run: Path | TrainedRun, users: Sequence[str] | None = None, k: int = 10, unseen: bool = False
) -> pd.DataFrame:
    """The first ``k`` items for users' next item in the test, of all or of unseen ones.

    Args:
        users: raw ids; None for every user of the test.
        k: places; there are fewer where fewer items are ranked.
        unseen: leave the history out of the ranking, but for a repeated target.

    Returns:
        A line for each place of each test target, users in the order of ``users``: ``user``,
        ``place`` from 1, ``item``, ``score``, ``target``, ``rank`` of the target in this ranking
        (expected over the order of ties), ``history_length``, ``greater`` and ``ties`` (see
        ``sigma.ranking.scores.Ranking``). Ids are raw, as text. Items of equal score stand in the
        order of their first appearance in the data.
    """
    if k < 1:
        raise UserError(f"k={k} must be at least 1.")
    trained = run if isinstance(run, TrainedRun) else load(run)
    indices = user_indices(trained.data, users)
    parts = list(_score(trained, indices, k, unseen))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    turn = np.empty(trained.sequences.num_users, dtype=np.int64)
    turn[indices] = np.arange(len(indices))
    order = np.lexsort((columns["history_length"], turn[columns["user"]]))
    top, scores = columns.pop("top")[order], columns.pop("score")[order]
    target, place = np.nonzero(~np.isneginf(scores))
    table = pd.DataFrame(columns).iloc[order[target]].reset_index(drop=True)
    table["place"], table["item"] = place + 1, top[target, place] + 1
    table["score"], table["rank"] = scores[target, place], table["greater"] + 1 + table["ties"] / 2
    user_ids, item_ids = trained.sequences.user_ids, trained.sequences.item_ids
    table["user"] = [str(user_ids[user]) for user in table["user"]]
    for name in ("item", "target"):
        table[name] = [str(item_ids[item - 1]) for item in table[name]]
    return table[
        ["user", "place", "item", "score", "target", "rank", "history_length", "greater", "ties"]
    ]


def user_indices(data: SequenceDataModule, users: Sequence[str] | None) -> np.ndarray:
    """Indices of users that the test asks for, each once, in the order of ``users`` (raw ids)."""
    ends = np.searchsorted(data.sequences.offsets, data.split.test, side="right")
    tested = {str(data.sequences.user_ids[user]): user for user in np.unique(ends - 1)}
    for user in users or ():
        if str(user) not in tested:
            raise UserError(
                f"There is no user {excerpt(user)} among the {len(tested):,} that the test of "
                f"{data.name} asks for; there are such as {listed(list(tested)[:3])}."
            )
    names = tested if users is None else dict.fromkeys(map(str, users))
    return np.array([tested[name] for name in names], dtype=np.int64)


def _score(
    run: TrainedRun, users: np.ndarray, k: int, unseen: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Of test targets of some users: who and what, its rank, the first k and their scores."""
    config, data, task = run.config, run.data, run.task
    precision = torch.get_float32_matmul_precision()
    name = config.trainer.accelerator
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        name = "auto"
    fabric = L.Fabric(accelerator=accelerator(name), devices=1, precision=config.trainer.precision)
    indices = torch.from_numpy(users).to(fabric.device)
    try:
        set_precision(config.matmul_precision)
        fabric.setup_module(task)  # moves it to the device and to its precision
        with torch.inference_mode(), fabric.autocast():
            for batch in data.test_dataloader():
                batch = data.transfer_batch_to_device(batch, fabric.device, 0)
                mask = torch.isin(batch.users, indices)
                if not mask.any():
                    continue
                states = task.model(batch.items, batch.rows, batch.places)
                seen = Seen(batch) if unseen else None
                for chunk, scores in all_scores(task.model, states):
                    if seen is not None:
                        scores = scores.index_put(seen.of(chunk), scores.new_tensor(float("-inf")))
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
                        "score": values[:, :k],
                    }
                    yield {name: column.cpu().numpy() for name, column in part.items()}
    finally:
        set_precision(precision)


def show(table: pd.DataFrame, data: Sequences) -> None:
    """Print a part for each user and target, with titles where they are known."""
    titles = {item: title.title for item, title in titles_of(data).items()}
    for (user, length), part in table.groupby(["user", "history_length"], sort=False):
        target, rank = part["target"].iloc[0], part["rank"].iloc[0]
        user, next_one = excerpt(user, WIDEST), excerpt(target, WIDEST)
        print(f"User {user}, {length} items: the next one is {next_one}, rank {rank:g}")
        lines = part[["place", "item", "score"]].assign(
            item=[excerpt(item, WIDEST) for item in part["item"]],
            title=[
                excerpt(titles.get(item, ""), WIDEST) + "*" * (item == target)
                for item in part["item"]
            ],
        )
        print(lines.to_string(index=False), end="\n\n")


def main(arguments: Sequence[str]) -> None:
    options = argparse.ArgumentParser(
        "python -m sigma.recommend", description=__doc__, allow_abbrev=False
    )
    options.add_argument("--run", type=Path, required=True, help="the run's folder")
    options.add_argument("--users", help="raw ids, parted by commas; else all of the test, to out")
    options.add_argument("--k", type=int, default=10, help="places")
    options.add_argument(
        "--unseen", type=str.lower, choices=("true", "false"), default="false", help="items alone"
    )
    options.add_argument("--path", help="the raw data, where it does not lie any more where it was")
    options.add_argument("--out", type=Path, help="CSV to write, instead of printing")
    # run=a is as good as --run=a
    typed = options.parse_args([a if a.startswith("-") else f"--{a}" for a in arguments])
    users = None if typed.users is None else typed.users.split(",")
    with explained():
        if users is None and typed.out is None:
            raise UserError("Name users with users=5050,12, or write all users' with out=file.csv.")
        run = load(typed.run, typed.path)
        table = recommend(run, users, typed.k, typed.unseen == "true")
        if typed.out is None:
            show(table, run.sequences)
            return
        typed.out.parent.mkdir(parents=True, exist_ok=True)
        changed = write_csv(table, typed.out)
        targets = len(table[["user", "history_length"]].drop_duplicates())
        print(f"{targets:,} test targets, {len(table):,} recommendations: {typed.out}")
        if changed:
            print(note(changed))


if __name__ == "__main__":
    main(sys.argv[1:])
