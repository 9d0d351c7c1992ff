"""Training on this checkout beside another: time, operations and memory of models, as ratios.

    git worktree add ../before fb4e1d1
    python -m experiments.benchmarks.against ../before dataset=beauty dataset.path=beauty.txt

``--out results/benchmarks --name against_beauty`` writes ``against_beauty.csv``. The two checkouts
take turns, so what slows the machine for a while hits both. An epoch's seconds are the median step
times the steps of an epoch, batch making and optimizer included; an evaluation's, the fastest pass
over the validation's users, batch making and metrics included. ``operations`` are the ``aten::``
calls of one step (forward, loss, backward) as PyTorch's profiler counts them.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODELS = ["sigma", "sasrec", "mamba4rec", "gru4rec"]
COLUMNS = ["epoch_seconds", "evaluation_seconds", "operations", "peak_mib", "step_mib"]


def measure_here(overrides: list[str], least: float) -> dict[str, float]:
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
    while len(times) < 6 or sum(times[2:]) < least:  # the first two compile and allocate
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
    task.eval()
    passes = []
    with torch.inference_mode():
        while len(passes) < 3:
            start = time.perf_counter()
            for batch in data.val_dataloader():
                task.evaluation_step("val", batch)
            passes.append(time.perf_counter() - start)
    task.train()
    batch = next(iter(loader))
    with torch.profiler.profile() as profile:
        task.training_step(batch, 0).backward()
    return {
        "epoch_seconds": statistics.median(times[2:]) * len(loader),
        "evaluation_seconds": min(passes),
        "operations": sum(event.name.startswith("aten::") for event in profile.events()),
        "step_mib": (peak - before) / 1024,
        "peak_mib": peak / 1024,
    }


def one(case: dict[str, Any]) -> dict[str, float]:
    """``measure_here`` by a checkout's own code."""
    checkout = str(case["checkouts"][case["code"]])
    overrides = [f"model={case['model']}", *case["overrides"]]
    command = [sys.executable, __file__, "--case", json.dumps([overrides, case["least"]])]
    environment = os.environ | {"PYTHONPATH": checkout}
    text = subprocess.check_output(command, cwd=checkout, env=environment, text=True)
    return json.loads(text.splitlines()[-1])


def main() -> None:
    import pandas as pd
    import torch

    from experiments.benchmarks import measure

    arguments = measure.parser(__doc__, 10.0)
    arguments.add_argument("other", type=Path, help="a checkout of the code to compare with")
    arguments.add_argument("overrides", nargs="*", help="as for train.py")
    arguments.add_argument("--models", nargs="+", default=MODELS)
    arguments.add_argument("--name", default="against", help="of the table")
    options = arguments.parse_intermixed_args()
    checkouts = {"this": measure.ROOT, "other": options.other.resolve()}
    axes = {"model": options.models, "code": list(checkouts)}
    settings = {"overrides": [options.overrides], "checkouts": [checkouts]}
    cases = measure.grid(options, **axes, **settings)
    medians = measure.medians(cases, one, options.repeats, [*axes], COLUMNS)
    parts = {}
    for column in COLUMNS:
        this, other = (medians[column].xs(code, level="code") for code in checkouts)
        parts |= {f"{column} this": this, f"{column} other": other, f"{column} ratio": this / other}
    measure.keep(pd.DataFrame(parts), options.name, options.out, torch.device("cpu"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure_here(*json.loads(sys.argv[2]))))
    else:
        main()
