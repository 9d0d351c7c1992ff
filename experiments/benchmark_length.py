"""Training speed and peak memory of SIGMA over the sequence length, against the plain scan.

``python -m experiments.benchmark_length`` times whole training steps (full rows, no padding) at
L = 50, 100, 200 with the scan that ``auto`` chooses and with the plain reference, alternating, and
prints the median, its spread and the ratio; ``--out results/length.csv`` keeps them. Every
measurement is a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd


def measure(backend: str, length: int, rows: int, items: int, steps: int) -> dict[str, float]:
    """Seconds of each training step, and peak resident memory of this process."""
    import functools

    import torch

    from sigma.losses import CrossEntropy
    from sigma.models.mamba import Mamba
    from sigma.models.sigma import Sigma

    torch.manual_seed(0)
    cross_entropy = CrossEntropy(torch.ones(items))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = Sigma(items, functools.partial(Mamba, backend=backend))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = torch.randint(1, items + 1, (rows, length))
    lengths = torch.full((rows,), length)
    targets = torch.randint(1, items + 1, (rows,))
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        loss = cross_entropy(model(batch, lengths)[:, -1], targets, model.logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": statistics.median(seconds[1:]), "mib": (peak - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--items", type=int, default=12101)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        backend, length = options.one
        result = measure(backend, int(length), options.rows, options.items, options.steps)
        print(json.dumps(result))
        return
    runs = []
    total = len(options.lengths) * options.repeats * 2
    for length in options.lengths:
        for repeat in range(options.repeats):
            for backend in ("auto", "reference"):
                print(f"\r{len(runs) + 1}/{total} L={length} {backend:<10}", end="", flush=True)
                sizes = [f"--{k}={getattr(options, k)}" for k in ("rows", "items", "steps")]
                done = subprocess.run(
                    [sys.executable, "-m", "experiments.benchmark_length", *sizes, "--one",
                     backend, str(length)],
                    check=True, capture_output=True, text=True,
                )  # fmt: skip
                runs.append({"length": length, "backend": backend, "repeat": repeat}
                            | json.loads(done.stdout.splitlines()[-1]))  # fmt: skip
    frame = pd.DataFrame(runs)
    frame["samples_per_second"] = options.rows / frame["seconds"]
    table = frame.groupby(["length", "backend"]).agg(
        samples_per_second=("samples_per_second", "median"),
        low=("samples_per_second", "min"),
        high=("samples_per_second", "max"),
        peak_mib=("mib", "median"),
    )
    speed = table["samples_per_second"].unstack()
    memory = table["peak_mib"].unstack()
    table = table.round(1).reset_index()
    ratio = pd.DataFrame(
        {
            "times_faster": speed["auto"] / speed["reference"],
            "memory": memory["auto"] / memory["reference"],
        }
    )
    print(f"\n{platform.processor() or platform.machine()}, {options.rows} rows of full length")
    print(table.to_string(index=False))
    print(ratio.round(3).to_string())
    if options.out:
        table.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
