"""All that a GPU must show, in under eight minutes, as one table at the end.

    python -m experiments.benchmarks.gpu <folder with beauty.txt and ml-1m.txt>
    python -m experiments.benchmarks.gpu data --parts kernels models --out results/benchmarks

Parts, each a process of its own with a limit of its own, so that one that fails or hangs is told
and costs no other; nothing else should run beside them:

tests     ``pytest -m gpu``
kernels   each operation on packed rows, forward and both ways, beside mamba-ssm's scan, cuDNN's GRU
          and PyTorch's attention on the same rows padded, where they can be had
models    every model of ``conf/model`` on Beauty: a step by replay and kernel by kernel, kernels
          launched, an epoch's bare steps; some on MovieLens-1M; some in bfloat16
train     ``train.py``'s own epochs and its start
table2    ``experiment=table2_overall dataset=beauty``, 40 runs to their early stop; only when asked
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
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

LIMITS = {"tests": 120, "kernels": 90, "models": 150, "train": 100, "table2": 1800}
EPOCH_SECONDS = re.compile(r"  ([0-9.]+) s(?:  |$)")  # of a line that train.py prints an epoch
DEFAULT = ("tests", "kernels", "models", "train")
COUNTED = {"item_knn", "markov", "popularity", "vmis_knn"}  # which train nothing
Line = dict[str, Any]

# What is asked, by part and name; the unit is the line's.
ASKED = {
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


def milliseconds(work: Callable[[], Any], least: float = 0.15) -> float:
    """The median time of ``work`` on the device, by its own clock."""
    import torch

    for _ in range(3):
        work()
    torch.cuda.synchronize()
    times: list[float] = []
    while len(times) < 5 or sum(times) < 1e3 * least:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def tests(_: Path) -> Iterator[Line]:
    """The suite's tests that need a CUDA device."""
    files = [
        "tests/ops",
        "tests/test_capture.py",
        "tests/test_losses.py",
        "tests/test_negatives.py",
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    if importlib.util.find_spec("xdist"):  # most of the time goes into compiling kernels
        command += ["-n", "8"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=LIMITS["tests"] - 10
        )
        status, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        status, said = -1, output.decode() if isinstance(output, bytes) else output
    for failure in [x for x in said.splitlines() if x.startswith(("FAILED", "ERROR"))][:20]:
        print(failure, file=sys.stderr)
    yield line("pytest -m gpu", status, "exit status", (said.strip().splitlines() or ["none"])[-1])


def both(
    function: Callable[..., Any], inputs: list[Any], weights: list[Any] | None = None
) -> tuple[float, float]:
    """Milliseconds forward, and of forward and backward, to the inputs and the weights."""
    import torch

    y = function(*inputs)
    grad = torch.randn_like(y)
    leaves = [*inputs, *(weights or [])]

    def there() -> None:
        with torch.no_grad():
            function(*inputs)

    def and_back() -> None:
        torch.autograd.grad(function(*inputs), leaves, grad)

    return milliseconds(there), milliseconds(and_back)


def scan_inputs(size: int, kind: Any, d: int = 128, n: int = 32) -> list[Any]:
    """u, dt, A, B, C, D, z, bias on packed rows of ``size`` places."""
    import torch

    def draw(*shape: int, kind: Any = kind) -> Any:
        return torch.randn(shape, device="cuda").to(kind).requires_grad_()

    full = torch.float32
    a = (-torch.arange(1.0, n + 1, device="cuda").repeat(d, 1)).requires_grad_()
    return [
        *(draw(size, d), draw(size, d), a, draw(size, n), draw(size, n)),
        *(draw(d, kind=full), draw(size, d), draw(d, kind=full)),
    ]


def kernels(_: Path) -> Iterator[Line]:
    """Operations on packed rows beside their peers on padded ones."""
    import torch
    import torch.nn.functional as F

    from sigma.ops import attend, causal_conv, gru, rows_of, selective_scan
    from sigma.ops.dispatch import has_mamba_ssm

    torch.manual_seed(0)
    shapes = [(2048, 50, "2048x50"), (2048, 200, "2048x200")]
    for number, length, shape in shapes:
        rows = rows_of(torch.full((number,), length, device="cuda"), length)
        for kind in (torch.float32, torch.bfloat16):
            name = f"scan {shape} {str(kind).removeprefix('torch.')}"
            inputs = scan_inputs(number * length, kind)
            there, back = both(lambda *x, rows=rows: selective_scan(*x, rows), inputs)
            yield line(f"{name}, forward", there, "ms")
            yield line(f"{name}, both ways", back, "ms")
            if has_mamba_ssm():
                from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

                u, dt, A, B, C, D, z, bias = inputs
                wide = [
                    x.detach()
                    .view(number, length, -1)
                    .transpose(1, 2)
                    .contiguous()
                    .requires_grad_()
                    for x in (u, dt, B, C, z)
                ]
                there, back = both(
                    lambda u, dt, A, B, C, D, z, bias: selective_scan_fn(
                        u, dt, A, B, C, D, z, bias, delta_softplus=True
                    ),
                    [wide[0], wide[1], A, wide[2], wide[3], D, wide[4], bias],
                )
                yield line(f"{name}, forward (mamba-ssm)", there, "ms")
                yield line(f"{name}, both ways (mamba-ssm)", back, "ms")

    # Rows as on Beauty: 2,048 histories of six items on average, fifty at most.
    lengths = (torch.empty(2048).exponential_(1 / 5).long() + 1).clamp(max=50)
    rows, size = rows_of(lengths.cuda(), 50), int(lengths.sum())

    def draw(*shape: int) -> Any:
        return torch.randn(shape, device="cuda", requires_grad=True)

    x, weight, bias = draw(size, 128), draw(128, 4), draw(128)
    there, back = both(lambda *t: causal_conv(*t, rows, True), [x, weight, bias])
    yield line("conv, Beauty's rows, forward", there, "ms")
    yield line("conv, Beauty's rows, both ways", back, "ms")
    for hidden in (64, 128):
        inputs = [draw(size, 3 * hidden), draw(3 * hidden, hidden), draw(3 * hidden)]
        there, back = both(lambda *t: gru(*t, rows), inputs)
        yield line(f"gru {hidden}, Beauty's rows, forward", there, "ms")
        yield line(f"gru {hidden}, Beauty's rows, both ways", back, "ms")
        peer = torch.nn.GRU(hidden, hidden, batch_first=True, device="cuda")
        there, back = both(
            lambda t, peer=peer: peer(t)[0], [draw(2048, 50, hidden)], list(peer.parameters())
        )
        name = f"gru {hidden} with the inputs' product, padded to 50, both ways (cuDNN)"
        yield line(name, back, "ms")
    for heads, width in ((2, 32), (8, 8)):
        q, k, v = (draw(size, heads, width) for _ in range(3))
        there, back = both(lambda *t: attend(*t, rows, dropout=0.3), [q, k, v])
        yield line(f"attend {heads}x{width}, Beauty's rows, forward", there, "ms")
        yield line(f"attend {heads}x{width}, Beauty's rows, both ways", back, "ms")
        q, k, v = (draw(2048, heads, 50, width) for _ in range(3))
        there, back = both(
            lambda *t: F.scaled_dot_product_attention(*t, is_causal=True, dropout_p=0.3), [q, k, v]
        )
        yield line(f"attend {heads}x{width}, padded to 50, both ways (PyTorch)", back, "ms")


def steps(overrides: list[str], name: str, eager_too: bool = True) -> Iterator[Line]:
    """A model's steps on batches as the loader makes them for a GPU."""
    import torch
    from lightning.fabric.utilities import move_data_to_device

    from experiments.benchmarks.measure import composed
    from sigma.build import build, set_precision
    from sigma.capture import CapturedStep, Inputs
    from sigma.datamodules.batches import filled, pinned

    config = composed(*overrides)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as Lightning sets it
    set_precision(config.matmul_precision)
    torch.use_deterministic_algorithms(True)
    data, task = build(config)
    task = task.cuda().train()
    optimizer, loader = task.configure_optimizers(), data.train_dataloader()
    half = config.trainer.precision == "bf16-mixed"
    captured = CapturedStep(task.batch_loss, list(task.parameters()))
    torch.cuda.reset_peak_memory_stats()

    def batches() -> Iterator[Any]:
        while True:
            for batch in loader:
                yield move_data_to_device(pinned(filled(batch)), torch.device("cuda"))

    source = batches()

    def step(run: Callable[[Any], Any], batch: Any) -> None:
        inputs = Inputs(batch.items, batch.rows, batch.places, batch.targets, batch.twins)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = run(inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def wall(run: Callable[[Any], Any], count: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            step(run, next(source))
        torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start) / count

    wall(captured, 12)  # compiles and records
    replay = statistics.median(wall(captured, 5) for _ in range(5))
    yield line(f"{name}, step by replay", replay, "ms", f"{len(loader)} steps an epoch")
    yield line(f"{name}, epoch of bare steps", replay * len(loader) / 1e3, "s")
    if captured.refused:
        yield line(f"{name}, captured", 0, "", "the step cannot be captured")
    if eager_too:
        yield line(f"{name}, step kernel by kernel", wall(task.batch_loss, 6), "ms")
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            step(task.batch_loss, next(source))
            torch.cuda.synchronize()
        launched = sum(
            e.count
            for e in profile.key_averages()
            if "LaunchKernel" in e.key or e.key == "cudaMemsetAsync"
        )
        yield line(f"{name}, kernels of an eager step", launched, "")
    yield line(f"{name}, peak memory", torch.cuda.max_memory_allocated() / 2**20, "MiB")


def models(folder: Path) -> Iterator[Line]:
    """Every model on Beauty, the paper's on MovieLens-1M, and bfloat16."""
    from experiments.benchmarks.measure import ROOT

    names = sorted({p.stem for p in (ROOT / "conf/model").glob("*.yaml")} - COUNTED)
    first = ["sigma", "sasrec", "mamba4rec", "gru4rec", "echo"]
    beauty = ["dataset=beauty", f"dataset.path={folder / 'beauty.txt'}"]
    ml_1m = ["dataset=ml_1m", f"dataset.path={folder / 'ml-1m.txt'}"]
    cases = [(f"{n} beauty", [f"model={n}", *beauty], True) for n in first]
    cases += [(f"{n} ml_1m", [f"model={n}", *ml_1m], False) for n in first[:3]]
    half = "trainer.precision=bf16-mixed"
    cases += [(f"{n} beauty bf16", [f"model={n}", *beauty, half], False) for n in first[:2]]
    cases += [(f"{n} beauty", [f"model={n}", *beauty], False) for n in names if n not in first]
    for name, overrides, eager_too in cases:
        try:
            yield from steps(overrides, name, eager_too)
        except Exception as error:
            traceback.print_exc()
            yield line(name, float("nan"), "", f"failed: {error!r}"[:300])


def train(folder: Path) -> Iterator[Line]:
    """Whole runs of ``train.py``: what a user waits for."""
    from experiments.benchmarks.measure import ROOT

    cases = [
        ("sigma beauty", ["model=sigma", "dataset=beauty"], "beauty.txt", 5),
        ("sasrec beauty", ["model=sasrec", "dataset=beauty"], "beauty.txt", 5),
        ("sigma ml_1m", ["model=sigma", "dataset=ml_1m"], "ml-1m.txt", 3),
    ]
    for name, overrides, file, epochs in cases:
        with tempfile.TemporaryDirectory() as run:
            command = [
                *(sys.executable, "-u", str(ROOT / "train.py"), *overrides, "logger=csv"),
                *(f"dataset.path={folder / file}", f"trainer.max_epochs={epochs}"),
                f"hydra.run.dir={run}",
            ]
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            times, told = [], []
            for text in process.stdout:
                if text.startswith("epoch ") and (seconds := EPOCH_SECONDS.search(text)):
                    times.append(time.perf_counter() - start)
                    told.append(float(seconds[1]))
            if process.wait():
                yield line(name, float("nan"), "", f"train.py ended with {process.returncode}")
                continue
            lengths = [b - a for a, b in pairwise(times)]
            note = "from line to line, validation and checkpoints included"
            yield line(f"{name}, epoch", statistics.median(lengths), "s", note)
            if name == "sigma beauty":
                yield line(f"{name}, start to the first step", times[0] - told[0], "s")
                yield line(f"{name}, first epoch", told[0], "s")


def table2(folder: Path) -> Iterator[Line]:
    """The paper's main table on Beauty, by one command."""
    from experiments.benchmarks.measure import ROOT

    with tempfile.TemporaryDirectory() as runs:
        command = [
            *(sys.executable, str(ROOT / "train.py"), "-m", "experiment=table2_overall"),
            *("dataset=beauty", f"dataset.path={folder / 'beauty.txt'}", "logger=csv"),
            f"hydra.sweep.dir={runs}",
        ]
        start = time.perf_counter()
        done = subprocess.run(command, check=False)
        rows = len(list(Path(runs).glob("*/row.json")))
        note = f"{rows} rows, exit status {done.returncode}"
        yield line("40 runs", time.perf_counter() - start, "s", note)


PARTS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "tests": tests,
    "kernels": kernels,
    "models": models,
    "train": train,
    "table2": table2,
}


def lines_of(part: str, folder: Path) -> list[Line]:
    """A part in a process of its own; what it had said before its limit counts."""
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", str(folder), "--part", part]
    lines, start = [], time.perf_counter()
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
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("data", type=Path, help="folder with beauty.txt and ml-1m.txt")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT)
    options.add_argument("--out", type=Path, help="folder for the table, as gpu.csv")
    options.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    folder = arguments.data.expanduser().resolve()
    if arguments.part:
        for entry in PARTS[arguments.part](folder):
            print(json.dumps(entry), flush=True)
        return
    import pandas as pd
    import torch

    from experiments.benchmarks.measure import keep

    if not torch.cuda.is_available():
        raise SystemExit("This benchmark needs a CUDA device, and PyTorch sees none.")
    lines = [entry for part in arguments.parts for entry in lines_of(part, folder)]
    table = pd.DataFrame(lines).set_index(["part", "name"])
    table.insert(2, "asked", [ASKED.get(key, float("nan")) for key in table.index])
    keep(table, "gpu", arguments.out, torch.device("cuda"))


if __name__ == "__main__":
    main()
