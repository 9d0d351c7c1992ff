"""All that a GPU must show, in under ten minutes, as one table at the end.

    python -m experiments.benchmarks.gpu <folder with beauty.txt and ml-1m.txt>
    python -m experiments.benchmarks.gpu data --parts kernels models --out results/benchmarks

Parts, each a process of its own with a limit of its own, so that one that fails or hangs says so
and costs no other; nothing else should run beside them:

tests     ``pytest -m gpu``
kernels   each operation on packed rows, forward and both ways, beside mamba-ssm's scan, cuDNN's GRU
          and PyTorch's attention on the same rows padded, where they can be had
models    every model of ``conf/model`` on Beauty: a step by replay and kernel by kernel, kernels
          launched, an epoch's bare steps; some on MovieLens-1M; some in bfloat16
train     ``train.py``'s own epochs and its start
table2    ``experiment=table2_overall dataset=beauty``, 40 runs to their early stop; only by name
"""

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.benchmarks import measure, operations
from experiments.benchmarks.measure import ROOT
from experiments.benchmarks.models import replay
from sigma.ops.dispatch import has_mamba_ssm

LIMITS = {"tests": 240, "kernels": 90, "models": 150, "train": 100, "table2": 1800}  # seconds
DEFAULT = ("tests", "kernels", "models", "train")
TESTS = ["tests/ops", "tests/test_capture.py", "tests/test_losses.py", "tests/test_negatives.py"]
EPOCH_SECONDS = re.compile(r"  ([0-9.]+) s(?:  |$)")  # of a line that train.py prints an epoch
COUNTED = {"item_knn", "markov", "popularity", "vmis_knn"}  # which train nothing
CUDA = torch.device("cuda")
UNITS = {  # of what ``models.replay`` measures
    **{"step by replay": "ms", "epoch of bare steps": "s", "step kernel by kernel": "ms"},
    **{"kernels of an eager step": "", "peak memory": "MiB"},
}
Line = dict[str, Any]

# What is asked for, by part and name; the unit is the line's.
TARGETS = {
    ("kernels", "scan 2048x50 float32, both ways"): 2.0,
    ("models", "sigma beauty, kernels of an eager step"): 450,
    ("train", "sigma beauty, epoch"): 0.5,
    ("train", "sasrec beauty, epoch"): 0.35,
    ("train", "sigma ml_1m, epoch"): 8.0,
    ("train", "sigma beauty, start to the first step"): 7.0,
    ("train", "sigma beauty, first epoch"): 1.5,
    ("table2", "40 runs"): 900.0,
}


def line(name: str, value: float, unit: str, note: str = "") -> Line:
    return {"name": name, "value": value, "unit": unit, "note": note}


def tests(_: Path) -> Iterator[Line]:
    """The suite's tests that need a CUDA device, side by side: Triton compiles for most of it."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *TESTS]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(16, os.cpu_count() or 1))]
    last = "none"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for text in process.stdout or ():
            last = text.strip() or last
            print(text, end="", file=sys.stderr, flush=True)
    yield line("pytest -m gpu", process.returncode, "exit status", last)


def kernels(_: Path) -> Iterator[Line]:
    """Operations on packed rows beside their peers on padded ones."""
    options = argparse.Namespace(device=CUDA, seconds=0.15)
    scans = ["triton", *(["mamba_ssm"] if has_mamba_ssm() else [])]
    scan = {"operation": ["scan"], "length": [50, 200], "kind": ["float32", "bfloat16"]}
    rest = {"operation": list(operations.SHAPES)[1:], "length": [50], "kind": ["float32"]}
    cases = measure.grid(options, **scan, backend=scans, ragged=[False], rows=[2048])
    cases += measure.grid(options, **rest, backend=["auto", "pytorch"], ragged=[True], rows=[2048])
    for case in cases:
        result = operations.one(case)
        rows = "Beauty's rows" if case["ragged"] else f"2048x{case['length']} {case['kind']}"
        is_peer = case["backend"] in operations.PEERS
        by = f" ({case['backend']}, padded)" if is_peer else ""
        for way, ms in (("forward", result["forward_ms"]), ("both ways", result["ms"])):
            yield line(f"{case['operation']} {rows}, {way}{by}", ms, "ms")


def models(folder: Path) -> Iterator[Line]:
    """Every model on Beauty, the paper's on MovieLens-1M, and bfloat16."""
    every = sorted({p.stem for p in (ROOT / "conf/model").glob("*.yaml")} - COUNTED)
    first = ["sigma", "sasrec", "mamba4rec", "gru4rec", "echo"]
    beauty = ["dataset=beauty", f"dataset.path={folder / 'beauty.txt'}"]
    ml_1m = ["dataset=ml_1m", f"dataset.path={folder / 'ml-1m.txt'}"]
    half = [*beauty, "trainer.precision=bf16-mixed"]
    cases = [
        *((n, "beauty", beauty, True) for n in first),
        *((n, "ml_1m", ml_1m, False) for n in first[:3]),
        *((n, "beauty bf16", half, False) for n in first[:2]),
        *((n, "beauty", beauty, False) for n in every if n not in first),
    ]
    for model, data, overrides, eager_too in cases:
        name = f"{model} {data}"
        try:
            result = replay([f"model={model}", *overrides], CUDA, eager_too)
        except Exception as error:
            traceback.print_exc()
            yield line(name, float("nan"), "", f"failed: {error!r}"[:300])
            continue
        note = result.pop("note")
        for what, value in result.items():
            yield line(f"{name}, {what}", value, UNITS[what], note)
            note = ""


def train_command(folder: Path, data: str, *overrides: str) -> list[str]:
    """``train.py`` on one of the data sets in ``folder``."""
    path = f"dataset.path={folder / {'beauty': 'beauty.txt', 'ml_1m': 'ml-1m.txt'}[data]}"
    script = str(ROOT / "train.py")
    return [sys.executable, "-u", script, f"dataset={data}", path, "logger=csv", *overrides]


def train(folder: Path) -> Iterator[Line]:
    """Runs of ``train.py``: what a user waits for."""
    for model, data, epochs in (
        ("sigma", "beauty", 5),
        ("sasrec", "beauty", 5),
        ("sigma", "ml_1m", 3),
    ):
        name, ends, epoch_seconds = f"{model} {data}", [], []
        with tempfile.TemporaryDirectory() as run:
            overrides = [f"model={model}", f"trainer.max_epochs={epochs}", f"hydra.run.dir={run}"]
            command = train_command(folder, data, *overrides)
            start = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for text in process.stdout or ():
                    if text.startswith("epoch ") and (seconds := EPOCH_SECONDS.search(text)):
                        ends.append(time.perf_counter() - start)
                        epoch_seconds.append(float(seconds[1]))
        if process.returncode:
            yield line(name, float("nan"), "", f"train.py ended with {process.returncode}")
            continue
        epoch = statistics.median(b - a for a, b in pairwise(ends))
        yield line(f"{name}, epoch", epoch, "s", "from line to line, validation included")
        if name == "sigma beauty":
            yield line(f"{name}, start to the first step", ends[0] - epoch_seconds[0], "s")
            yield line(f"{name}, first epoch", epoch_seconds[0], "s")


def table2(folder: Path) -> Iterator[Line]:
    """The paper's main table on Beauty, by one command."""
    with tempfile.TemporaryDirectory() as runs:
        sweep = ["-m", "experiment=table2_overall", f"hydra.sweep.dir={runs}"]
        start = time.perf_counter()
        command = train_command(folder, "beauty", *sweep)
        status = subprocess.run(command, check=False, stdout=sys.stderr).returncode
        note = f"{len(list(Path(runs).glob('*/row.json')))} rows, exit status {status}"
        yield line("40 runs", time.perf_counter() - start, "s", note)


PARTS = {part.__name__: part for part in (tests, kernels, models, train, table2)}


def lines_of(part: str, folder: Path) -> list[Line]:
    """A part in a process of its own; what it measured before its limit counts."""
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", str(folder), "--part", part]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, text=True, start_new_session=True)
        try:
            status = process.wait(LIMITS[part])
            note = f"ended with {status}" if status else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            note = f"stopped at its limit of {LIMITS[part]} s"
        out.seek(0)
        lines = [json.loads(text) for text in out if text.startswith("{")]
    if note:
        lines.append(line(part, float("nan"), "", note))
    print(f"{part}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return [{"part": part} | entry for entry in lines]


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("data", type=Path, help="folder with beauty.txt and ml-1m.txt")
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT)
    arguments.add_argument("--out", type=Path, help="folder for the table, as gpu.csv")
    arguments.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    folder = options.data.expanduser().resolve()
    if options.part:
        for entry in PARTS[options.part](folder):
            print(json.dumps(entry), flush=True)
        return
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a CUDA device, and PyTorch sees none.")
    lines = [entry for part in options.parts for entry in lines_of(part, folder)]
    table = pd.DataFrame(lines).set_index(["part", "name"])
    table.insert(2, "target", [TARGETS.get(key, float("nan")) for key in table.index])
    measure.keep(table, "gpu", options.out, CUDA)


if __name__ == "__main__":
    main()
