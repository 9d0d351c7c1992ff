"""Training, evaluation and memory of every model on one data set, beside RecBole's SASRec.

    python -m experiments.benchmarks.models dataset=beauty dataset.path=beauty.txt --seconds 2
    python -m experiments.benchmarks.models --name peers --models sasrec sigma \\
        --recbole env/bin/python dataset=beauty dataset.path=beauty.txt

with ``--out results/benchmarks`` they write ``models.csv`` and ``peers.csv`` (its lines ``plain``,
``reference`` and ``mambapy`` are of commit 3bb7780, which could still pad batches). Each model is
built as ``train.py`` builds it (its own objective, loss and batch size), trained and evaluated for
a while. ``outside_percent`` is the share of the training's time spent making batches.

``--recbole`` names a Python that has RecBole 1.2.1 (with numpy < 2, pandas < 2.2, scipy < 1.13);
its SASRec trains for an epoch on the same data set with the same sizes.
"""

import functools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case, now
from sigma.capture import CapturedStep, Inputs
from sigma.datamodules.base import SequenceDataModule
from sigma.task import SequenceTask

COLUMNS = [
    *("epoch_seconds", "parameters", "targets_per_second", "outside_percent", "eval_seconds"),
    *("eval_ms_per_4096", "peak_mib"),
]


Loss = Callable[[Inputs], Tensor]
Measured = tuple[str, float, str, str]  # what, value, unit, note


def one(case: Case) -> Case:
    """A model's parameters, its speed in training and evaluation, and its peak memory."""
    on, (name, _, peer) = case["device"], case["model"].partition(" ")
    data, task = measure.built(measure.composed(f"model={name}", *case["overrides"]), on)
    if peer:
        return recbole(case, data)
    memory = measure.Memory(on)
    result = {"parameters": sum(p.numel() for p in task.parameters())}
    if task.trained:
        result |= train(data, task, on, case["least"])
    return result | evaluate(data, task, on, case["least"]) | {"peak_mib": memory.mib()}


def train(
    data: SequenceDataModule,
    task: SequenceTask,
    on: torch.device,
    least: float,
    run: Loss | None = None,
    warm: int = 1,
    number: int = 3,
) -> Case:
    """Training steps for a while, of which the first ``warm`` do not count.

    Args:
        run: computes the loss; by default the task does, operation by operation.
        number: the least number of steps that count.
    """
    task.train()
    run = run or task.batch_loss
    optimizer, loader = task.configure_optimizers(), data.train_dataloader()
    assert optimizer is not None
    source = measure.endless(loader, on)
    steps, targets, outside, start = -warm, 0, 0.0, now(on)
    while steps < number or time.perf_counter() - start < least:
        if steps == 0:
            targets, outside, start = 0, 0.0, now(on)
        began = time.perf_counter()
        batch = next(source)
        outside += time.perf_counter() - began
        targets += batch.num_targets
        run(Inputs(batch.items, batch.rows, batch.places, batch.targets, batch.twins)).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    seconds = now(on) - start
    return {
        "step_ms": 1e3 * seconds / steps,
        "epoch_seconds": len(loader) * seconds / steps,
        "targets_per_second": targets / seconds,
        "outside_percent": 100 * outside / seconds,
    }


def launches(work: Callable[[], Any]) -> int:
    """Kernels that ``work`` launches."""
    with torch.profiler.profile() as profile:
        work()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    return sum("LaunchKernel" in name or name == "cudaMemsetAsync" for name in names)


def replay(overrides: list[str], on: torch.device, eager_too: bool) -> Iterator[Measured]:
    """A model's training steps on CUDA by replay, and if ``eager_too`` kernel by kernel."""
    config = measure.composed(*overrides)
    data, task = measure.built(config, on)
    memory = measure.Memory(on)
    half = torch.autocast("cuda", torch.bfloat16, config.trainer.precision == "bf16-mixed")
    captured = CapturedStep(task.batch_loss, list(task.parameters()))
    steps = len(data.train_dataloader())
    # A size is compiled when it is first seen and recorded the second time.
    timing = train(data, task, on, 0, half(captured), warm=min(steps, 80), number=40)
    note = f"{steps} steps an epoch, {len(captured.recordings)} sizes recorded"
    note += "; the step cannot be captured" if captured.refused else ""
    yield "step by replay", timing["step_ms"], "ms", note
    yield "epoch of bare steps", timing["epoch_seconds"], "s", ""
    if eager_too:
        eager = functools.partial(train, data, task, on, 0, half(task.batch_loss))
        yield "step kernel by kernel", eager(number=6)["step_ms"], "ms", ""
        # The first step sets up the optimizer, too.
        extra = launches(lambda: eager(0, 2)) - launches(lambda: eager(0, 1))
        yield "kernels of an eager step", extra, "", ""
    yield "peak memory", memory.mib(), "MiB", ""


@torch.inference_mode()
def evaluate(data: SequenceDataModule, task: SequenceTask, on: torch.device, least: float) -> Case:
    """Full ranking of the test users for a while, from batches to ranks."""
    assert data.split is not None
    task.eval()
    seconds, users, most = 0.0, 0, len(data.split.test)
    task.evaluation_step("test", next(measure.endless(data.test_dataloader(), on)))
    source = measure.endless(data.test_dataloader(), on)
    while not users or (seconds < least and users < most):
        start = now(on)
        batch = next(source)
        task.evaluation_step("test", batch)
        seconds, users = seconds + now(on) - start, users + len(batch.users)
    return {"eval_ms_per_4096": 4096e3 * seconds / users, "eval_seconds": most * seconds / users}


def recbole(case: Case, data: SequenceDataModule) -> Case:
    """RecBole's SASRec in its own environment, on the very sequences of ours."""
    sequences = data.sequences
    assert sequences is not None
    ours = ("GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE")  # of ``sigma.environment``, for PyTorch
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    with tempfile.TemporaryDirectory() as folder:  # RecBole leaves logs where it runs
        path = Path(folder) / "peer" / "peer.inter"
        path.parent.mkdir()
        users = np.repeat(np.arange(sequences.num_users), np.diff(sequences.offsets))
        frame = pd.DataFrame({"user_id:token": users, "item_id:token": sequences.items})
        frame["timestamp:float"] = range(len(frame))
        frame.to_csv(path, sep="\t", index=False)
        script = str(Path(__file__).with_name("recbole_sasrec.py"))
        sizes = [data.batch_size, data.max_length, case["device"].type]
        command = [case["python"], script, folder, *map(str, sizes)]
        text = subprocess.check_output(command, text=True, cwd=folder, env=environment)
    return json.loads(text.splitlines()[-1])


def main() -> None:
    arguments = measure.parser(__doc__, 5.0)
    arguments.add_argument("overrides", nargs="*", help="as for train.py")
    every = sorted(path.stem for path in (measure.ROOT / "conf/model").glob("*.yaml"))
    arguments.add_argument("--models", nargs="+", choices=every, default=every)
    arguments.add_argument("--recbole", metavar="PYTHON", help="that can import RecBole")
    arguments.add_argument("--name", default="models", help="of the table")
    options = arguments.parse_intermixed_args()
    models = [*options.models, *(["sasrec (recbole)"] if options.recbole else [])]
    axes = {"overrides": [options.overrides], "python": [options.recbole]}
    cases = measure.grid(options, model=models, **axes)
    table = measure.medians(cases, one, options.repeats, ["model"], COLUMNS)
    table.insert(0, "parameters", table.pop("parameters"))
    if "sasrec" in table.index:
        table.insert(4, "of_sasrec", table["epoch_seconds"] / table["epoch_seconds"]["sasrec"])
    table = table.sort_values("epoch_seconds", na_position="first")
    measure.keep(table, options.name, options.out, options.device)


if __name__ == "__main__":
    main()
