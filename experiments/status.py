"""Where an experiment's runs stand: done, running, failed, interrupted, missing; and the time left.

    python -m experiments.status experiment=table2_overall dataset=beauty [--runs multirun]

Takes what ``python train.py -m`` takes. Time left is told from finished runs of the same model and
data set, else of the same data set, on one process.
"""

import argparse
import csv
import json
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from experiments.grid import Job, expand
from sigma.runs.files import FAILURE as FAILED
from sigma.runs.files import LOCK, ROW
from sigma.runs.identity import run_folder
from sigma.runs.messages import explained

RUNS = Path(os.environ.get("SIGMA_RUNS", "multirun"))
STATES = ("done", "running", "failed", "interrupted", "missing")


@dataclass(frozen=True)
class Standing:
    """One run: its state, epochs that are behind it, seconds it took, and why it failed."""

    job: Job
    state: str
    epochs: int = 0
    seconds: float | None = None
    reason: str = ""


def standing(job: Job, runs: Path) -> Standing:
    """Told from the run's folder alone; nothing there is changed."""
    folder = run_folder(runs, job.config)
    if folder.is_file():
        return Standing(job, "failed", reason=f"{folder} is a file; move it away")
    if (folder / ROW).is_file():
        try:
            row = told(folder / ROW)
            spent = row["efficiency"]
            seconds = float(spent.get("train_seconds") or 0) + float(spent.get("eval_seconds") or 0)
            return Standing(job, "done", int(row["epochs"]), seconds)
        except (KeyError, TypeError, ValueError, AttributeError):
            reason = f"{folder / ROW} is damaged; delete it and start the same sweep again"
            return Standing(job, "failed", reason=reason)
    epochs = lines(folder / "metrics.csv") - 1
    if is_held(folder / LOCK):
        return Standing(job, "running", max(epochs, 0))
    if (folder / FAILED).is_file():
        reason = str(told(folder / FAILED).get("error", "its reason cannot be read"))
        return Standing(job, "failed", max(epochs, 0), reason=reason)
    if (folder / "checkpoints" / "last.ckpt").is_file():
        return Standing(job, "interrupted", max(epochs, 0))
    return Standing(job, "missing")


def told(path: Path) -> dict[str, Any]:
    """What a file of a run says; nothing where it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_held(path: Path) -> bool:
    """Whether another process has this lock."""
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    lock.release()
    return False


def lines(path: Path) -> int:
    """Records of a CSV file, 0 without it."""
    if not path.is_file():
        return 0
    with path.open(newline="") as file:
        return sum(1 for _ in csv.reader(file))


def time_left(found: Sequence[Standing]) -> tuple[float | None, int]:
    """Seconds for what is not done (None without any finished run), and runs not counted in it."""
    by_pair: dict[tuple[str, str], list[float]] = {}
    by_data: dict[str, list[float]] = {}
    for one in found:
        if one.seconds is not None:
            by_pair.setdefault((one.job.model, one.job.dataset), []).append(one.seconds)
            by_data.setdefault(one.job.dataset, []).append(one.seconds)
    total, unknown = 0.0, 0
    for one in found:
        if one.state == "done":
            continue
        known = by_pair.get((one.job.model, one.job.dataset)) or by_data.get(one.job.dataset)
        if known is None:
            unknown += 1
        else:
            total += statistics.fmean(known)
    return (total if by_data else None), unknown


def show(found: Sequence[Standing], console: Console) -> None:
    """A line for each model and data set, then the reasons of what failed."""
    table = Table()
    for name in ("model", "data set", *STATES):
        table.add_column(name, justify="left" if name in ("model", "data set") else "right")
    pairs = dict.fromkeys((one.job.model, one.job.dataset) for one in found)
    for pair in pairs:
        own = Counter(one.state for one in found if (one.job.model, one.job.dataset) == pair)
        table.add_row(*pair, *(str(own[state] or "") for state in STATES))
    console.print(table)
    count = Counter(one.state for one in found)
    console.print(
        f"{len(found)} runs: " + ", ".join(f"{count[s]} {s}" for s in STATES if count[s]),
        highlight=False,
    )
    for one in found:
        if one.state == "running":
            console.print(f"running: {one.job.run_id}, {one.epochs} epochs", highlight=False)
        if one.state == "failed":
            console.print(f"failed: {one.job.run_id}: {one.reason}", highlight=False)
    seconds, unknown = time_left(found)
    if seconds is not None and count["done"] < len(found):
        beside = f", and {unknown} runs of which nothing is known" if unknown else ""
        left = timedelta(seconds=round(seconds))
        console.print(f"About {left} left in one process{beside}.", highlight=False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.status",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="+", help="experiment=… and what narrows it")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs")
    given = parser.parse_args(arguments)
    jobs = expand(given.overrides)
    if not given.runs.is_dir():
        print(f"There is no folder {given.runs} yet; --runs or SIGMA_RUNS names another.")
    found = [standing(job, given.runs) for job in jobs]
    show(found, Console())


if __name__ == "__main__":
    with explained():
        main()
