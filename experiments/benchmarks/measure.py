"""What the benchmarks share: a process for every case, rounds of them, medians, and the stamp.

A benchmark lists its cases as dictionaries and has a function that measures one of them.
``medians`` runs every case in a process of its own (so that its peak memory is its own), case after
case, ``repeats`` times over: what slows the machine for a while hits all of them alike.
"""

import argparse
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from hydra import compose, initialize_config_dir
from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.benchmark import Timer

from sigma.build import build, set_precision
from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.batches import Batch, filled, pinned
from sigma.ops import rows_of
from sigma.runs.provenance import git_state, hardware, peak_bytes, versions
from sigma.task import SequenceTask

ROOT = Path(__file__).parents[2]
Case = dict[str, Any]
Measure = Callable[[Case], Case]


def parser(doc: str | None, least: float = 1.0) -> argparse.ArgumentParser:
    """Options that every benchmark has; ``least`` is the default of ``--seconds``."""
    layout = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=doc, formatter_class=layout)
    options.add_argument("--repeats", type=int, default=3, help="rounds over all cases")
    best = "cuda" if torch.cuda.is_available() else "cpu"
    options.add_argument("--device", type=torch.device, default=best)
    options.add_argument("--seconds", type=float, default=least, help="least time of a measurement")
    options.add_argument("--out", type=Path, help="folder for the table")
    return options


def grid(options: argparse.Namespace, **axes: Iterable[Any]) -> list[Case]:
    """A case for every combination of the axes' values, the last axis running fastest."""
    common = {"device": options.device, "least": options.seconds}
    combinations = itertools.product(*axes.values())
    return [dict(zip(axes, values, strict=True)) | common for values in combinations]


def isolated(work: Callable[..., Any], *arguments: Any) -> Any:
    """``work(*arguments)`` in a new process.

    It is forked from a bare server: a process started by this one would begin with its peak memory.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        return pool.submit(work, *arguments).result()


def rounds(cases: list[Case], one: Measure, repeats: int) -> pd.DataFrame:
    """Measure all cases; a line per case and round, a failed one with its reason in ``failed``."""
    lines: list[Case] = []
    for turn, case in itertools.product(range(1, repeats + 1), cases):
        words = [str(value) for value in case.values() if not isinstance(value, list | dict)]
        print(f"{turn}/{repeats} {' '.join(words)[:80]}", file=sys.stderr, flush=True)
        try:
            result = isolated(one, case)
        except Exception as error:  # also of a process that was killed
            traceback.print_exc()
            result = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        lines.append(case | result)
    return pd.DataFrame(lines)


def medians(
    cases: list[Case], one: Measure, repeats: int, by: list[str], columns: list[str]
) -> pd.DataFrame:
    """Medians of ``columns`` over rounds, a line for each value of ``by``, in the cases' order;
    ``low`` and ``high`` are the least and the largest of the first column.
    """
    lines = rounds(cases, one, repeats)
    if not set(columns) & set(lines):
        raise SystemExit("Nothing could be measured; the reasons are above.")
    groups = lines.reindex(columns=[*by, *columns]).groupby(by, sort=False, dropna=False)
    table = groups.median(numeric_only=True)
    table.insert(1, "low", groups[columns[0]].min())
    table.insert(2, "high", groups[columns[0]].max())
    return table


def own_bytes() -> int:
    """Memory of this process without files that are mapped."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


class Memory:
    """Peak memory since it was built, of a device, or of this process for the CPU."""

    def __init__(self, on: torch.device) -> None:
        self.on = on
        if on.type == "cuda":
            torch.cuda.reset_peak_memory_stats(on)
        self.before = 0 if on.type == "cuda" else peak_bytes(on)

    def mib(self) -> float:
        return (peak_bytes(self.on) - self.before) / 2**20


def now(on: torch.device) -> float:
    """The clock, once the device has nothing left to do."""
    if on.type == "cuda":
        torch.cuda.synchronize(on)
    return time.perf_counter()


def median_seconds(work: Callable[[], Any], least: float) -> float:
    """The median time of a call after the first, by PyTorch's timer, over ``least`` seconds."""
    work()  # compiles and allocates
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=least).median


def composed(*overrides: str) -> DictConfig:
    """The config that ``train.py`` composes of these overrides."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def built(config: DictConfig, on: torch.device) -> tuple[SequenceDataModule, SequenceTask]:
    """Data and task as ``train.py`` has them, on a device and without a trainer."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as Lightning sets it
    torch.use_deterministic_algorithms(config.trainer.deterministic)
    set_precision(config.matmul_precision)
    data, task = build(config)
    return data, task.to(on)


def endless(loader: Iterable[Batch], on: torch.device) -> Iterator[Batch]:
    """Epoch after epoch, a loader's batches as a trainer hands them to the task."""
    while True:
        for batch in loader:
            yield move_data_to_device(pinned(filled(batch)), on) if on.type == "cuda" else batch


def random_batch(lengths: Tensor, longest: int, num_items: int, on: torch.device) -> Batch:
    """Random rows of these lengths (B,), one target each, at the last item."""
    generator = torch.Generator().manual_seed(0)
    rows, number, none = rows_of(lengths, longest), len(lengths), torch.empty(0, dtype=torch.int64)
    sizes = [int(lengths.sum()), number]
    ids = torch.randint(1, num_items + 1, (sum(sizes),), generator=generator)
    items, targets = ids.split(sizes)
    last, users = rows.offsets[1:] - 1, torch.arange(number)
    batch = Batch(items, rows, last, targets, number, users, lengths, none)
    return move_data_to_device(batch, on)


def keep(table: pd.DataFrame, name: str, out: Path | None, on: torch.device) -> None:
    """Print a table, and write it into the folder ``out``, if any, as CSV.

    Its stamp is hardware, threads, version and commit, in one line.
    """
    machine, git = hardware(on), git_state(ROOT)
    threads = os.environ.get("OMP_NUM_THREADS", machine["threads"])
    where = machine.get("gpu") or f"{machine['cpu']}, {threads} threads"
    commit = (git["commit"] or "unknown")[:7] + ("+" if git["dirty"] else "")
    stamp = f"{where}; torch {versions()['torch']}; commit {commit}"
    print(f"\n{name}: {stamp}\n{table.round(4).to_string()}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        # Significant digits: the columns span from microseconds to gigabytes.
        table.convert_dtypes().assign(stamp=stamp).to_csv(out / f"{name}.csv", float_format="%.5g")
