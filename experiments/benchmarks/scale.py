"""Training on more interactions than memory holds: samples a second over their number.

    python -m experiments.benchmarks.scale --out results/benchmarks

writes ``scale.csv``. Items are random, 40 a user, in a file that is mapped into memory, in
``--folder``, 4 bytes each. Data, model and task are as ``train.py`` builds them, and the number of
steps is the same for all. ``setup_seconds`` is from the file to the task: split, statistics and
counts of items; ``first_seconds`` until the first batch. ``of_smallest`` is ``samples_per_second``
as a multiple of the first line's; ``step_cpu_ms`` is processor time, which other work on the
machine hardly moves, and ``batch_cpu_ms`` the median of what making a batch takes of it.
``peak_mib`` is the peak of the process above its imports, pages of the mapped file included, which
the system takes back as it likes; ``own_mib`` is memory of its own at the end.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from experiments.benchmarks.models import train
from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.preprocess import Sequences

CPU = torch.device("cpu")
LENGTH, ITEMS, BATCHES = 40, 10_000, 50
COLUMNS = ["samples_per_second", "step_cpu_ms", "batch_cpu_ms", "setup_seconds"]
COLUMNS += ["first_seconds", "peak_mib", "own_mib"]


class Mapped(SequenceDataModule):
    """The histories of a file of item ids (int32), ``LENGTH`` each, which stays where it is."""

    def build(self) -> Sequences:
        items = np.memmap(str(self.path), np.int32, mode="c")
        offsets = np.arange(0, len(items) + 1, LENGTH)
        users = np.arange(len(offsets) - 1, dtype=np.int32)
        return Sequences(items, offsets, None, users, np.arange(ITEMS))


def write(path: Path, number: int) -> None:
    rng = np.random.default_rng(2020)
    with path.open("wb") as file:
        for start in range(0, number, 2**24):
            some = min(2**24, number - start)
            file.write(rng.integers(1, ITEMS, some, np.int32, endpoint=True).tobytes())


def one(case: Case) -> Case:
    """Speed and memory of a model's training on one number of interactions."""
    config = measure.composed(f"model={case['model']}", "dataset=custom")
    config.dataset._target_ = f"{Mapped.__module__}.{Mapped.__qualname__}"
    config.dataset.path = case["path"]
    memory = measure.Memory(CPU)
    before, start = measure.own_bytes(), time.perf_counter()
    data, task = measure.built(config, CPU)
    ready = time.perf_counter()
    next(iter(data.train_dataloader()))
    first = time.perf_counter()
    batches, times = measure.endless(data.train_dataloader(), CPU), []
    for _ in range(BATCHES):
        began = time.process_time()
        next(batches)
        times.append(time.process_time() - began)
    busy = time.process_time()
    result = train(data, task, CPU, 0, number=case["steps"])
    busy = time.process_time() - busy
    return {
        "samples_per_second": result["targets_per_second"],
        "step_cpu_ms": 1e3 * busy / (case["steps"] + 1),  # the first does not count otherwise
        "batch_cpu_ms": 1e3 * statistics.median(times),
        "setup_seconds": ready - start,
        "first_seconds": first - ready,
        "peak_mib": memory.mib(),
        "own_mib": (measure.own_bytes() - before) / 2**20,
    }


def main() -> None:
    arguments = measure.parser(__doc__)
    sizes = [1_000_000, 100_000_000, 1_000_000_000]
    arguments.add_argument("--interactions", type=int, nargs="+", default=sizes)
    arguments.add_argument("--model", default="sigma")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--folder", help="for the files, of a disk with room")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        cases = []
        for number in options.interactions:
            path = Path(folder, f"{number}.int32")
            write(path, number // LENGTH * LENGTH)
            case = {"interactions": number, "model": options.model, "steps": options.steps}
            cases.append(case | {"path": str(path)})
        by = ["model", "interactions"]
        table = measure.medians(cases, one, options.repeats, by, COLUMNS)
    speed = table["samples_per_second"]
    table.insert(1, "of_smallest", speed / speed.iloc[0])
    measure.keep(table, "scale", options.out, CPU)


if __name__ == "__main__":
    main()
