"""What the benchmarks share: a process for every measurement, turns, medians, stamps.

A benchmark script lists its cases as plain dictionaries and has a function that measures one of
them. ``rounds`` runs every case in a process of its own (so that its peak memory is its own), case
after case, ``repeats`` times over: what slows the machine for a while hits all of them alike.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import sigma.environment  # noqa: F401  as train.py has it, before torch is loaded

ROOT = Path(__file__).parents[2]
Case = dict[str, Any]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--repeats", type=int, default=3, help="rounds over all cases")
    made.add_argument("--device", default="auto", help="cpu, cuda or auto")
    made.add_argument("--out", type=Path, help="folder for table and picture")
    made.add_argument("--one", help=argparse.SUPPRESS)
    return made


def device(name: str) -> Any:
    """The device called cpu, cuda or auto."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def rounds(module: str, cases: Sequence[Case], repeats: int, one: Callable[[Case], Case],
           only: str | None) -> pd.DataFrame:  # fmt: skip
    """Measure all cases; one row per case and round, with what ``one`` found.

    Args:
        module: of the script, such as ``experiments.benchmarks.scan``.
        cases: plain values only; each is handed to a new process as JSON.
        repeats: rounds.
        one: measures a case, in the new process. A case that fails has its reason under ``failed``.
        only: the script's ``--one``: this process is such a new one, and ends here.
    """
    if only is not None:
        print(json.dumps(one(json.loads(only))))
        raise SystemExit
    rows: list[Case] = []
    total, start = len(cases) * repeats, time.perf_counter()
    for turn in range(repeats):
        for case in cases:
            done = len(rows)
            left = (time.perf_counter() - start) / done * (total - done) if done else 0
            words = " ".join(str(v) for v in case.values() if not isinstance(v, list | dict))
            print(f"{done + 1}/{total} {words[:60]}  {left / 60:.0f} min left",
                  file=sys.stderr, flush=True)  # fmt: skip
            ran = subprocess.run(
                [sys.executable, "-m", module, "--one", json.dumps(case)],
                capture_output=True, text=True, cwd=ROOT,
            )  # fmt: skip
            if ran.returncode:
                lines = ran.stderr.strip().splitlines() or [f"ended with {ran.returncode}"]
                told = [line for line in lines if "Error" in line]  # Hydra says more behind it
                found = {"failed": (told or lines)[-1][:200]}
                print(f"  failed: {found['failed']}", file=sys.stderr, flush=True)
            else:
                found = json.loads(ran.stdout.splitlines()[-1])
            rows.append({"round": turn} | case | found)
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame, by: list[str], time_column: str) -> pd.DataFrame:
    """Medians over rounds, in the order of the cases, with the least and the largest time."""
    grouped = frame.groupby(by, sort=False, dropna=False)
    table = grouped.median(numeric_only=True).drop(columns="round")
    at = list(table.columns).index(time_column) + 1
    table.insert(at, "low", grouped[time_column].min())
    table.insert(at + 1, "high", grouped[time_column].max())
    return table


class Memory:
    """Peak memory since it was made, of the device, or of this process on the CPU."""

    def __init__(self, on: Any) -> None:
        import torch

        self.on = on
        if on.type == "cuda":
            torch.cuda.reset_peak_memory_stats(on)
        self.before = 0 if on.type == "cuda" else self._peak()

    def _peak(self) -> int:
        from sigma.runs.provenance import peak_bytes

        return peak_bytes(self.on)

    def mib(self) -> float:
        return (self._peak() - self.before) / 2**20


def now(on: Any) -> float:
    """The clock, once the device has done what it was given."""
    import torch

    if on.type == "cuda":
        torch.cuda.synchronize(on)
    return time.perf_counter()


def seconds(step: Callable[[], Any], on: Any, least: float = 1.0, times: int = 3) -> list[float]:
    """Seconds of each call after the first, at least ``times`` of them and ``least`` in all."""
    step()
    spent: list[float] = []
    while len(spent) < times or sum(spent) < least:
        start = now(on)
        step()
        spent.append(now(on) - start)
    return spent


def composed(*overrides: str) -> Any:
    """The config that ``train.py`` composes of these overrides."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(overrides))


def built(config: Any, on: Any) -> tuple[Any, Any]:
    """Data and task as ``train.py`` builds them, on a device and without a trainer."""
    from lightning.fabric.utilities import move_data_to_device

    from sigma.build import build
    from sigma.datamodules.batches import filled, pinned

    data, task = build(config)
    if on.type == "cuda":  # batches as a trainer has them
        data._laid_out = lambda batch: move_data_to_device(pinned(filled(batch)), on)
    task.log = lambda *_, **__: None
    return data, task.to(on)


def drawn_batch(lengths: Any, longest: int, num_items: int, on: Any) -> Any:
    """A ``Batch`` of random rows of these lengths (B,), one target each, at the last item."""
    import torch
    from lightning.fabric.utilities import move_data_to_device

    from sigma.datamodules.batches import Batch
    from sigma.ops import rows_of

    generator = torch.Generator().manual_seed(0)
    rows, none = rows_of(lengths, longest), torch.empty(0, dtype=torch.int64)

    def drawn(number: int) -> Any:
        return torch.randint(1, num_items + 1, (number,), generator=generator)

    batch = Batch(
        items=drawn(int(lengths.sum())),
        rows=rows,
        places=rows.offsets[1:] - 1,
        targets=drawn(len(lengths)),
        num_targets=len(lengths),
        users=torch.arange(len(lengths)),
        history_lengths=lengths,
        seen_rows=none,
        seen_items=none,
    )
    return move_data_to_device(batch, on)


def stamp(on: Any) -> str:
    """Hardware, threads, versions and commit, in one line."""
    from sigma.runs.provenance import git_state, hardware, versions

    ours, git, found = hardware(on), git_state(ROOT), versions()
    threads = os.environ.get("OMP_NUM_THREADS", ours["threads"])
    where = ours.get("gpu") or f"{ours['cpu']}, {threads} threads"
    commit = (git["commit"] or "unknown")[:7] + ("+" if git["dirty"] else "")
    return f"{where}; torch {found['torch']}; commit {commit}"


def keep(table: pd.DataFrame, name: str, out: Path | None, on: Any) -> None:
    """Print a table, and keep it in ``out`` as CSV with its stamp, when given."""
    line = stamp(on)
    with pd.option_context("display.width", 200, "display.max_columns", 30):
        print(f"\n{name}: {line}\n{table.round(4).to_string()}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        whole = [c for c in table if pd.api.types.is_float_dtype(table[c])
                 and (table[c].dropna() % 1 == 0).all()]  # fmt: skip
        table = table.astype(dict.fromkeys(whole, "Int64"))
        # Significant digits: the columns span from microseconds to gigabytes.
        table.assign(stamp=line).to_csv(out / f"{name}.csv", float_format="%.5g")
