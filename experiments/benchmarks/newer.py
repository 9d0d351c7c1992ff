"""Newer data: how much of a full retraining's quality after how small a part of its time.

    python -m experiments.benchmarks.newer --name newer_ml_100k model=sigma_causal \\
        dataset=ml_100k dataset.path=ml-100k.inter dataset.split=global_time \\
        dataset.batch_size=32

with ``--out results/benchmarks`` it writes ``newer_ml_100k.csv``. The first ``--share`` of the
interactions by time (of a set without times: of each user's) are the older file, all of them the
newer one. ``train.py`` trains a run on the older file, and on the newer one a run from nothing and
one with ``init_from=`` the older run, each for ``--epochs`` epochs and until it stops by itself,
tested on the same targets. After 0 epochs the weights are the older run's, new items drawn.
``seconds`` are the processor's, of a command from its start to its end, so that other work on the
machine does not count; ``of_…`` are parts of what the run from nothing has when it stops.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from sigma.datamodules.preprocess import Sequences
from sigma.runs.files import ROW
from sigma.runs.row import Row

METRICS = {
    "val_ndcg@10": ("val", "ndcg@10"),
    "hr@10": ("test", "hr@10"),
    "ndcg@10": ("test", "ndcg@10"),
    "unseen_ndcg@10": ("test", "unseen/ndcg@10"),
}
COLUMNS = ["epochs", "seconds", *METRICS]


def write(folder: Path, sequences: Sequences, share: float) -> None:
    """``older.csv`` and ``newer.csv``."""
    folder.mkdir()
    lengths = np.diff(sequences.offsets)
    users, times = np.arange(len(lengths)).repeat(lengths), sequences.timestamps
    frame = pd.DataFrame({"user": users, "item": sequences.item_ids[sequences.items - 1]})
    if times is None:
        place = np.arange(len(frame)) - sequences.offsets[users]
        older = place < share * lengths[users]
    else:
        frame["timestamp"] = times
        older = times < np.sort(times)[int(share * len(times))]
    frame[older].to_csv(folder / "older.csv", index=False)
    frame.to_csv(folder / "newer.csv", index=False)


def train(words: list[str]) -> None:
    command = [sys.executable, str(measure.ROOT / "train.py"), *words]
    subprocess.run(command, check=True, stdout=sys.stderr)


def one(folder: Path, words: list[str]) -> Case:
    """What a run takes and reaches."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    train([*words, f"dataset.root={folder.parent / 'root'}", f"hydra.run.dir={folder}"])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = Row.read(folder / ROW)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    reached = {name: getattr(row.metrics, part)[key] for name, (part, key) in METRICS.items()}
    return {"epochs": row.epochs, "seconds": seconds, **reached}


def runs(folder: Path, overrides: list[str], budgets: list[int], seed: int) -> Iterator[Case]:
    """Every run of a seed on the newer file."""
    words = [*overrides, "logger=none", f"seed={seed}"]
    older, newer = (f"dataset.path={folder / name}.csv" for name in ("older", "newer"))
    one(folder / "older", [*words, older])
    for start, begin in (("nothing", []), ("older", [f"init_from={folder / 'older'}"])):
        for budget in (*budgets, None):
            if budget == 0 and not begin:
                continue
            limit = [] if budget is None else [f"trainer.max_epochs={budget or 1}"]
            limit += ["task.optimizer.lr=0"] if budget == 0 else []
            line = one(folder / f"{start}-{budget}", [*words, newer, *begin, *limit])
            line["epochs"] = line["epochs"] if budget is None else budget
            yield {"start": start, "until": "it stops" if budget is None else budget, **line}


def main() -> None:
    arguments = measure.parser(__doc__)
    arguments.add_argument("overrides", nargs="+", help="as for train.py")
    arguments.add_argument("--share", type=float, default=0.64, help="of the older file")
    arguments.add_argument("--epochs", type=int, nargs="+", default=[0, 1, 3])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[2020])
    arguments.add_argument("--name", default="newer", help="of the table")
    options = arguments.parse_intermixed_args()
    data, _ = measure.built(measure.composed(*options.overrides), options.device)
    lines: list[Case] = []
    with tempfile.TemporaryDirectory() as name:
        for seed in options.seeds:
            folder = Path(name) / str(seed)
            write(folder, data.sequences, options.share)
            lines += runs(folder, options.overrides, options.epochs, seed)
    table = pd.DataFrame(lines).groupby(["start", "until"], sort=False)[COLUMNS].mean()
    full = table.loc[[("nothing", "it stops")]]
    for column in ("seconds", "ndcg@10", "unseen_ndcg@10"):
        table[f"of_{column}"] = table[column] / full[column].iloc[0]
    measure.keep(table, options.name, options.out, options.device)


if __name__ == "__main__":
    main()
