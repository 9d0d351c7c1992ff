"""Training, evaluation and memory of every model on one data set, beside RecBole and plain code.

    python -m experiments.benchmarks.models dataset=beauty dataset.path=beauty.txt
    python -m experiments.benchmarks.models --models sasrec sigma --recbole env/bin/python …

Each model of ``conf/model`` is built as ``train.py`` builds it (its own objective, loss and batch
size), trained and evaluated for a while, in a process of its own; models take turns. Overrides go
to every model. What an epoch holds is the objective's: all prefixes, all positions, or masked
histories. ``outside_percent`` is the share of a training step spent making the batch.

``--recbole`` names a Python that has RecBole 1.2.1 (with numpy < 2, pandas < 2.2, scipy < 1.13);
its SASRec trains on the same data set with the same sizes.
"""

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.benchmarks.measure import (
    ROOT,
    Case,
    Memory,
    built,
    composed,
    device,
    keep,
    now,
    parser,
    rounds,
    summary,
)
from experiments.canvas import picture

COLUMNS = [
    *("parameters", "epoch_seconds", "low", "high", "of_sasrec", "targets_per_second"),
    *("outside_percent", "eval_seconds", "eval_ms_per_4096", "peak_mib"),
]


def one(case: Case) -> Case:
    """Samples per second and memory of one model, warmed up by one step."""
    if case["how"] == "recbole":  # which knows nothing of what train.py sets for PyTorch
        os.environ.pop("GOMP_SPINCOUNT", None)
        os.environ.pop("THP_MEM_ALLOC_ENABLE", None)
        return recbole(case)
    on = device(case["device"])
    data, task = built(composed(f"model={case['model']}", *case["overrides"]), on)
    memory = Memory(on)
    found: Case = {"parameters": sum(p.numel() for p in task.parameters())}
    if task.trained:
        found |= train(task, data, on, case["seconds"])
    task.eval()
    found |= evaluate(task, data, on, case["seconds"])
    found["peak_mib"] = memory.mib()
    return found


def train(task: Any, data: Any, on: Any, seconds: float) -> Case:
    """Steps for a while, over again if the epoch is short."""
    optimizer, loader = task.configure_optimizers(), data.train_dataloader()
    batches = iter(loader)
    steps: list[float] = []
    made, samples = 0.0, 0
    while sum(steps[1:]) < seconds or len(steps) < 4:  # the first step allocates
        start = now(on)
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        ready = time.perf_counter()
        task.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(now(on) - start)
        if len(steps) > 1:
            made += ready - start
            samples += batch.num_targets
    spent = sum(steps[1:])
    return {
        "epoch_seconds": len(loader) * spent / (len(steps) - 1),
        "targets_per_second": samples / spent,
        "outside_percent": 100 * made / spent,
    }


def evaluate(task: Any, data: Any, on: Any, seconds: float) -> Case:
    """Full ranking of the test users for a while, from batches to ranks."""
    import torch

    users, spent, all_users = 0, 0.0, len(data.split.test)
    with torch.no_grad():
        loader = data.test_dataloader()
        task.evaluation_step("test", next(iter(loader)))
        while not users or (spent < seconds and users < all_users):
            start = now(on)
            for batch in loader:
                task.evaluation_step("test", batch)
                users += len(batch.users)
                spent, start = spent + now(on) - start, time.perf_counter()
                if spent > seconds:
                    break
    return {"eval_ms_per_4096": 4096e3 * spent / users, "eval_seconds": all_users * spent / users}


def recbole(case: Case) -> Case:
    """RecBole's SASRec in its own environment, on the very sequences of ours."""
    data, _ = built(composed("model=popularity", *case["overrides"]), device("cpu"))
    sequences = data.sequences
    assert sequences is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer" / "peer.inter"
        path.parent.mkdir()
        users = pd.Series(range(sequences.num_users)).repeat(
            sequences.offsets[1:] - sequences.offsets[:-1]
        )
        frame = pd.DataFrame({"user_id:token": users.to_numpy(), "item_id:token": sequences.items})
        frame["timestamp:float"] = range(len(frame))
        frame.to_csv(path, sep="\t", index=False)
        ran = subprocess.run(
            [case["python"], str(ROOT / "experiments/peers/recbole_sasrec.py"), folder,
             str(data.batch_size), str(data.max_length), case["device"], str(case["seconds"])],
            capture_output=True, text=True, cwd=folder,  # RecBole leaves logs where it runs
        )  # fmt: skip
    if ran.returncode:
        raise RuntimeError((ran.stderr.strip().splitlines() or ["RecBole failed"])[-1])
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    made = parser(__doc__)
    made.add_argument("overrides", nargs="*", help="as for train.py")
    made.add_argument("--models", nargs="+", help="all of conf/model otherwise")
    made.add_argument("--seconds", type=float, default=5, help="of training per measurement")
    made.add_argument("--recbole", metavar="PYTHON", help="that can import RecBole")
    made.add_argument("--name", default="models", help="of table and picture")
    options = made.parse_args()
    on = device(options.device)
    models = options.models or sorted(p.stem for p in (ROOT / "conf/model").glob("*.yaml"))
    runs = [(name, "ours") for name in models]
    if options.recbole:
        runs.append(("sasrec", "recbole"))
    cases = [
        {
            "model": name,
            "how": how,
            "overrides": options.overrides,
            "device": on.type,
            "seconds": options.seconds,
            "python": options.recbole,
        }
        for name, how in runs
    ]
    frame = rounds("experiments.benchmarks.models", cases, options.repeats, one, options.one)
    frame["model"] = [
        name if how == "ours" else f"{name} ({how})"
        for name, how in zip(frame["model"], frame["how"], strict=True)
    ]
    for column in ("epoch_seconds", "eval_ms_per_4096"):
        if column not in frame:
            frame[column] = float("nan")
    table = summary(frame, ["model"], "epoch_seconds")
    if "sasrec" in table.index:
        table["of_sasrec"] = table["epoch_seconds"] / table["epoch_seconds"]["sasrec"]
    table = table.reindex(columns=COLUMNS).sort_values("epoch_seconds", na_position="first")
    keep(table, options.name, options.out, on)
    if options.out is not None:
        draw(table, options.out / f"{options.name}.png")


def draw(table: pd.DataFrame, path: Path) -> None:
    """Bars of an epoch's seconds, on a log scale."""
    trained = table.dropna(subset="epoch_seconds")
    figure = picture(7, 0.8 + 0.28 * len(trained))
    axes = figure.add_subplot()
    colours = ["#999999" if "(" in name else "#0072B2" for name in trained.index]
    bars = axes.barh(trained.index, trained["epoch_seconds"], color=colours)
    axes.bar_label(bars, [f" {s:,.3g} s" for s in trained["epoch_seconds"]], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(trained["epoch_seconds"].min() / 2, trained["epoch_seconds"].max() * 3)
    axes.invert_yaxis()
    axes.set_xlabel("one training epoch, seconds (grey: other code)")
    figure.savefig(path)


if __name__ == "__main__":
    main()
