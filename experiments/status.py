"""Where an experiment's runs stand: done, running, failed, interrupted, missing; and the time left.

    python -m experiments.status experiment=table2_overall dataset=beauty [--runs multirun]

Takes what ``python train.py -m`` takes. The time left is by finished runs of the same model and
data set, else of the same data set, in one process.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from experiments.grid import expand
from sigma.errors import UserError, excerpt
from sigma.runs.files import EPOCHS, FAILURE, LAST, LOCK, ROW
from sigma.runs.identity import run_folder
from sigma.runs.messages import explained
from sigma.runs.records import Failure, read
from sigma.runs.row import Row

RUNS = Path(os.environ.get("SIGMA_RUNS", "multirun"))
STATES = ("done", "running", "failed", "interrupted", "missing")


def state(folder: Path) -> dict[str, Any]:
    """State, epochs so far, seconds it took and why it failed, by the run's folder alone."""
    if (folder / ROW).exists():
        try:
            row = Row.read(folder / ROW)
        except UserError as error:
            return {"state": "failed", "reason": str(error)}
        seconds = sum(float(row.efficiency.get(f"{p}_seconds") or 0) for p in ("train", "eval"))
        return {"state": "done", "epochs": row.epochs, "seconds": seconds}
    log = folder / EPOCHS
    epochs = max(len(log.read_bytes().splitlines()) - 1, 0) if log.is_file() else 0
    if is_held(folder / LOCK):
        return {"state": "running", "epochs": epochs}
    if (folder / FAILURE).is_file():
        try:
            reason = read(folder / FAILURE, Failure, "its reason is lost").error
        except UserError as error:
            reason = str(error)
        return {"state": "failed", "epochs": epochs, "reason": reason}
    return {"state": "interrupted" if (folder / LAST).is_file() else "missing", "epochs": epochs}


def is_held(path: Path) -> bool:
    """Whether another process has this lock."""
    with suppress(Timeout), FileLock(path, blocking=False) if path.is_file() else nullcontext():
        return False
    return True


def time_left(runs: pd.DataFrame) -> tuple[float, int]:
    """Seconds for what is not done, and the number of runs of which nothing is known."""
    by_pair = runs.groupby(["model", "data set"])["seconds"].transform("mean")
    by_data = runs.groupby("data set")["seconds"].transform("mean")
    expected = by_pair.fillna(by_data)[runs["state"] != "done"]
    return float(expected.sum()), int(expected.isna().sum())


def show(runs: pd.DataFrame) -> None:
    """A line for each model and data set, then what runs, and the reasons of what failed."""
    table = pd.crosstab([runs["model"], runs["data set"]], runs["state"])
    table = table.reindex(columns=STATES, fill_value=0).reset_index()
    print(table.to_markdown(index=False))
    counts = runs["state"].value_counts()
    print(f"{len(runs)} runs: " + ", ".join(f"{counts[s]} {s}" for s in STATES if s in counts))
    for run in runs.to_dict("records"):
        if run["state"] == "running":
            print(f"running: {run['run_id']}, {run['epochs']} epochs")
        if run["state"] == "failed":
            print(f"failed: {run['run_id']}: {excerpt(run['reason'], 1000)}")
    seconds, unknown = time_left(runs)
    if counts.get("done", 0) not in (0, len(runs)):
        others = f", and {unknown} runs of which nothing is known" if unknown else ""
        print(f"About {timedelta(seconds=round(seconds))} left in one process{others}.")


def main(arguments: Sequence[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("overrides", nargs="+", help="experiment=… and what narrows it")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs")
    options = parser.parse_args(arguments)
    if not options.runs.is_dir():
        print(f"There is no folder {options.runs} yet; --runs or SIGMA_RUNS names another.")
    unknown = {"seconds": None, "epochs": 0}
    records = [
        {"run_id": job.run_id, "model": job.model, "data set": job.dataset}
        | unknown
        | state(run_folder(options.runs, job.config))
        for job in expand(options.overrides)
    ]
    show(pd.DataFrame(records).astype({"seconds": float}))


if __name__ == "__main__":
    with explained():
        main()
