"""Training on this checkout beside another: time, operations and memory of models, as ratios.

    git worktree add ../before fb4e1d1
    python -m experiments.benchmarks.against ../before dataset=beauty dataset.path=beauty.txt

Each measurement is a process of its own; the two checkouts take turns, so what slows the machine
for a while hits both. An epoch's seconds are the median step times the steps of an epoch, batch
making and optimizer included. ``operations`` are the ``aten::`` calls of one step (forward, loss,
backward) as PyTorch's profiler counts them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODELS = ("sigma", "sasrec", "mamba4rec", "gru4rec")


def measure(overrides: list[str], seconds: float) -> dict[str, float]:
    """One model in this process, by what both checkouts have: config, ``build`` and the task."""
    import sigma.environment  # noqa: F401  isort: skip

    import resource

    import torch
    from hydra import compose, initialize_config_dir

    from sigma.build import build

    with initialize_config_dir(str(Path.cwd() / "conf"), version_base="1.3"):
        config = compose("config", overrides)
    data, task = build(config)
    task.log = lambda *_, **__: None
    task.train()
    optimizer, loader = task.configure_optimizers(), data.train_dataloader()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batches, times = iter(loader), []
    while len(times) < 6 or sum(times[2:]) < seconds:  # the first two compile and allocate
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            continue
        task.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    batch = next(iter(loader))
    with torch.profiler.profile() as profile:
        task.training_step(batch, 0).backward()
    operations = sum(e.name.startswith("aten::") for e in profile.events())
    return {
        "epoch_seconds": statistics.median(times[2:]) * len(loader),
        "operations": operations,
        "step_mib": (peak - before) / 1024,
        "peak_mib": peak / 1024,
    }


def run(checkout: Path, overrides: list[str], seconds: float) -> dict[str, float]:
    """``measure`` by a checkout's own code."""
    environment = dict(os.environ) | {"PYTHONPATH": str(checkout)}
    case = json.dumps({"overrides": overrides, "seconds": seconds})
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--case", case],
        cwd=checkout, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    import pandas as pd
    import torch

    from experiments.benchmarks.measure import ROOT, keep

    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("other", type=Path, help="a checkout of the code to compare with")
    options.add_argument("overrides", nargs="*", help="as for train.py")
    options.add_argument("--models", nargs="+", default=MODELS)
    options.add_argument("--seconds", type=float, default=10, help="of steps per measurement")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--name", default="against", help="of the table")
    options.add_argument("--out", type=Path, help="folder for the table")
    arguments = options.parse_args()
    checkouts = {"this": ROOT, "other": arguments.other.resolve()}
    lines: list[dict[str, Any]] = []
    for turn in range(arguments.rounds):
        for model in arguments.models:
            for name, checkout in checkouts.items():
                figures = run(checkout, [f"model={model}", *arguments.overrides], arguments.seconds)
                lines.append({"model": model, "code": name, "round": turn} | figures)
                print(f"{turn + 1}/{arguments.rounds} {model} {name}: "
                      f"{figures['epoch_seconds']:.2f} s", file=sys.stderr, flush=True)  # fmt: skip
    frame = pd.DataFrame(lines).groupby(["model", "code"], sort=False).median(numeric_only=True)
    table = frame.drop(columns="round").unstack("code")
    for column in ("epoch_seconds", "operations", "step_mib", "peak_mib"):
        table[(column, "ratio")] = table[(column, "this")] / table[(column, "other")]
    table = table.sort_index(axis=1, level=0, sort_remaining=False)
    table.columns = [" ".join(names) for names in table.columns]
    keep(table, arguments.name, arguments.out, torch.device("cpu"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        case = json.loads(sys.argv[2])
        print(json.dumps(measure(case["overrides"], case["seconds"])))
    else:
        main()
