"""How fast a GPU is, in six minutes, as one table at the end.

    python -m experiments.benchmarks.gpu <folder with beauty.txt and ml-1m.txt> [--parts kernels]

Parts, each a process of its own with a limit of its own, so that one that fails or hangs says so
and costs no other; nothing else should run beside them:

kernels   each operation on packed rows, forward and both ways, beside mamba-ssm's scan, cuDNN's GRU
          and PyTorch's attention on the same rows padded, where they can be had
models    every model of ``conf/model`` on Beauty: a step by replay and kernel by kernel, kernels
          launched, an epoch's bare steps; some on MovieLens-1M; some in bfloat16
train     ``train.py``'s own epochs and its start
"""

import argparse
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

import pandas as pd
import torch

from experiments.benchmarks import measure, operations
from experiments.benchmarks.measure import ROOT
from experiments.benchmarks.models import replay
from sigma.ops.dispatch import has_mamba_ssm

LIMITS = {"kernels": 90, "models": 150, "train": 100}  # seconds
EPOCH_SECONDS = re.compile(r"  ([0-9.]+) s(?:  |$)")  # of a line that train.py prints an epoch
COUNTED = {"item_knn", "markov", "popularity", "vmis_knn"}  # which train nothing
CUDA = torch.device("cuda")
COLUMNS = ["part", "name", "value", "unit", "note"]
Line = tuple[str, float, str, str]  # name, value, unit, note
# What is asked for, by part and name; the unit is the line's.
TARGETS = {
    ("kernels", "scan 2048x50 float32, both ways"): 2.0,
    ("models", "sigma beauty, kernels of an eager step"): 450,
    ("train", "sigma beauty, epoch"): 0.5,
    ("train", "sasrec beauty, epoch"): 0.35,
    ("train", "sigma ml_1m, epoch"): 8.0,
    ("train", "sigma beauty, start to the first step"): 7.0,
    ("train", "sigma beauty, first epoch"): 1.5,
}


def data_of(folder: Path, name: str) -> list[str]:
    """Overrides for beauty or ml_1m."""
    return [f"dataset={name}", f"dataset.path={folder / name.replace('_', '-')}.txt"]


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
        by = f" ({case['backend']}, padded)" if case["backend"] in operations.PEERS else ""
        yield f"{case['operation']} {rows}, forward{by}", result["forward_ms"], "ms", ""
        yield f"{case['operation']} {rows}, both ways{by}", result["ms"], "ms", ""


def models(folder: Path) -> Iterator[Line]:
    """Every model on Beauty, the paper's on MovieLens-1M, and bfloat16."""
    first = ["sigma", "sasrec", "mamba4rec", "gru4rec", "echo"]
    rest = {p.stem for p in (ROOT / "conf/model").glob("*.yaml")} - COUNTED - {*first}
    half = ["trainer.precision=bf16-mixed"]
    cases: list[tuple[str, str, list[str]]] = [
        *((name, "beauty", []) for name in first),
        *((name, "ml_1m", []) for name in first[:3]),
        *((name, "beauty", half) for name in first[:2]),
        *((name, "beauty", []) for name in sorted(rest)),
    ]
    for model, data, more in cases:
        name = f"{model} {data}{' bf16' if more else ''}"
        eager_too = model in first and data == "beauty" and not more
        try:
            overrides = [f"model={model}", *data_of(folder, data), *more]
            for what, *others in replay(overrides, CUDA, eager_too):
                yield f"{name}, {what}", *others
        except Exception as error:
            traceback.print_exc()
            yield name, float("nan"), "", f"failed: {error!r}"[:300]


def train(folder: Path) -> Iterator[Line]:
    """Runs of ``train.py``: what a user waits for."""
    for model, data, epochs in (
        ("sigma", "beauty", 5),
        ("sasrec", "beauty", 5),
        ("sigma", "ml_1m", 3),
    ):
        name, ends, epoch_seconds = f"{model} {data}", [], []
        with tempfile.TemporaryDirectory() as run:
            overrides = [f"model={model}", *data_of(folder, data), "logger=csv"]
            overrides += [f"trainer.max_epochs={epochs}", f"hydra.run.dir={run}"]
            command = [sys.executable, "-u", str(ROOT / "train.py"), *overrides]
            start = time.perf_counter()
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for text in process.stdout or ():
                    if text.startswith("epoch ") and (seconds := EPOCH_SECONDS.search(text)):
                        ends.append(time.perf_counter() - start)
                        epoch_seconds.append(float(seconds[1]))
        if process.returncode:
            yield name, float("nan"), "", f"train.py ended with {process.returncode}"
            continue
        epoch = statistics.median(b - a for a, b in pairwise(ends))
        yield f"{name}, epoch", epoch, "s", "from line to line, validation included"
        if name == "sigma beauty":
            yield f"{name}, start to the first step", ends[0] - epoch_seconds[0], "s", ""
            yield f"{name}, first epoch", epoch_seconds[0], "s", ""


PARTS = {part.__name__: part for part in (kernels, models, train)}


def lines_of(part: str, folder: Path) -> list[list[object]]:
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
        lines = [[part, *json.loads(text)] for text in out if text.startswith("[")]
    if note:
        lines.append([part, part, float("nan"), "", note])
    print(f"{part}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return lines


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    arguments.add_argument("data", type=Path, help="folder with beauty.txt and ml-1m.txt")
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments.add_argument("--out", type=Path, help="folder for the table, as gpu.csv")
    arguments.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    folder = options.data.expanduser().resolve()
    if options.part:
        for line in PARTS[options.part](folder):
            print(json.dumps(line), flush=True)
        return
    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a CUDA device, and PyTorch sees none.")
    lines = [line for part in options.parts for line in lines_of(part, folder)]
    table = pd.DataFrame(lines, columns=COLUMNS).set_index(["part", "name"])
    table.insert(2, "target", [TARGETS.get(key, float("nan")) for key in table.index])
    measure.keep(table, "gpu", options.out, CUDA)


if __name__ == "__main__":
    main()
