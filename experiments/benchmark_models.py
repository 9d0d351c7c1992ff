"""Parameters, training speed, evaluation speed and peak memory of every model, on one data set.

``python -m experiments.benchmark_models dataset=beauty dataset.path=beauty.txt`` builds each model
of ``conf/model`` as ``train.py`` does (its own objective, loss and batch size), trains and
evaluates for a while, and prints a table; ``--out results/models.csv`` keeps it. Overrides go to
every model.
Each measurement is a process of its own, so that its peak memory is its own; the models take turns
``--repeats`` times, and the table shows medians, their spread and an epoch's share of SASRec's.
What an epoch holds is the objective's: all prefixes, all positions, or masked histories.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).parents[1]


def measure(name: str, overrides: list[str], seconds: float) -> dict[str, Any]:
    """Samples per second and memory of one model, warmed up by one step."""
    import torch
    from hydra import compose, initialize_config_dir

    from sigma.build import build

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"model={name}", *overrides])
    data, task = build(config)
    task.log = lambda *_, **__: None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {
        "model": name,
        "parameters": sum(p.numel() for p in task.parameters()),
    }
    if task.trained:
        optimizer = task.configure_optimizers()
        samples, spent = 0, 0.0
        loader = data.train_dataloader()
        steps = len(loader)
        batches = iter(loader)
        for step in range(10_000):
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                batch = next(batches)
            task.training_step(batch, step).backward()
            optimizer.step()
            optimizer.zero_grad()
            if step:  # the first step allocates
                samples += len(batch.targets)
                spent += time.perf_counter() - start
            if spent > seconds and step >= 3:
                break
        found["epoch_seconds"] = steps * spent / max(step, 1)
        found["targets_per_second"] = samples / spent
    task.eval()
    users, spent = 0, 0.0
    with torch.no_grad():
        for batch in data.test_dataloader():
            start = time.perf_counter()
            task.evaluation_step("test", batch)
            spent += time.perf_counter() - start
            users += len(batch.users)
            if spent > seconds:
                break
    found["eval_ms_per_4096"] = 4096e3 * spent / users
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["peak_mib"] = (peak - before) / 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    parser.add_argument("--models", nargs="+", help="all of conf/model otherwise")
    parser.add_argument("--seconds", type=float, default=10, help="of training per measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.overrides, options.seconds)))
        return
    models = options.models or sorted(p.stem for p in (ROOT / "conf/model").glob("*.yaml"))
    rows = []
    for repeat in range(options.repeats):
        for name in models:
            print(f"{len(rows) + 1}/{len(models) * options.repeats} {name}", flush=True)
            done = subprocess.run(
                [sys.executable, "-m", "experiments.benchmark_models", *options.overrides,
                 "--one", name, "--seconds", str(options.seconds)],
                check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            )  # fmt: skip
            rows.append({"repeat": repeat} | json.loads(done.stdout.splitlines()[-1]))
    frame = pd.DataFrame(rows)
    by_model = frame.groupby("model", sort=False)
    columns = ["parameters", "epoch_seconds", "targets_per_second", "eval_ms_per_4096", "peak_mib"]
    table = by_model.median(numeric_only=True).reindex(columns=columns)
    if "epoch_seconds" in frame:
        table.insert(2, "epoch_low", by_model["epoch_seconds"].min())
        table.insert(3, "epoch_high", by_model["epoch_seconds"].max())
    if "sasrec" in table.index:
        table.insert(4, "of_sasrec", table["epoch_seconds"] / table["epoch_seconds"]["sasrec"])
    table["parameters"] = table["parameters"].astype(int)
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    table["hardware"] = f"{platform.processor() or platform.machine()}, {threads} threads"
    print(table.drop(columns="hardware").round(2).to_string())
    if options.out:
        table.round(3).to_csv(options.out)


if __name__ == "__main__":
    main()
