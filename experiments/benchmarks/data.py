"""From a Parquet file to the first batch: seconds and memory against interactions.

    python -m experiments.benchmarks.data --out results/benchmarks

writes ``data.csv``. The file is made by a seed; users and items have a long tail. ``first`` reads,
filters, orders and splits it and takes one batch; ``second`` starts from the cache. ``peak_mib`` is
the peak of the process above what it was once everything was imported, ``own_mib`` the same without
pages of mapped files, which the system takes back as it likes.

    python -m sigma.simulate out=shop.parquet users=87000000 items=1000000 categories=100
    python -m experiments.benchmarks.data --file shop.parquet --folder .

takes a file that is there, and puts what is written beside it: for a billion interactions 42 GiB at
most.
"""

import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from sigma.datamodules.sets.custom import Custom

CPU = torch.device("cpu")
COLUMNS = ["seconds", "first_batch_seconds", "peak_mib", "own_mib", "users", "items"]
EVERY = 0.02  # seconds between two looks at the memory


def write(path: str, number: int) -> None:
    """``number`` interactions of about ``number / 40`` users with ``number / 200`` items."""
    rng = np.random.default_rng(2020)
    users = (rng.random(number) ** 2 * number / 40).astype(np.int64) * 7
    items = (rng.random(number) ** 3 * number / 200).astype(np.int64) * 3
    times = rng.integers(1_300_000_000, 1_500_000_000, number)
    pd.DataFrame({"user_id": users, "item_id": items, "timestamp": times}).to_parquet(path)


class OwnMemory(threading.Thread):
    """Peak of the process's memory without mapped files since it was built."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = measure.own_bytes()
        self.done = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.done.wait(EVERY):
            self.peak = max(self.peak, measure.own_bytes())

    def mib(self) -> float:
        self.done.set()
        return (max(self.peak, measure.own_bytes()) - self.before) / 2**20


def one(case: Case) -> Case:
    """Seconds and MiB from the file, or its cache, to one batch."""
    memory, own = measure.Memory(CPU), OwnMemory()
    start = time.perf_counter()
    data = Custom(path=case["path"], root=case["root"])
    data.setup()
    ready = time.perf_counter()
    next(iter(data.train_dataloader()))
    end = time.perf_counter()
    mib = memory.mib(), own.mib()
    values = (end - start, end - ready, *mib, data.statistics.users, data.num_items)
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    arguments = measure.parser(__doc__)
    sizes = [100_000, 1_000_000, 10_000_000]
    arguments.add_argument("--interactions", type=int, nargs="+", default=sizes)
    arguments.add_argument("--file", type=Path, help="Parquet that is there, in place of these")
    arguments.add_argument("--folder", help="for what is written, of a disk with room")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        files = {number: f"{folder}/{number}.parquet" for number in options.interactions}
        for number, path in files.items() if options.file is None else ():
            write(path, number)
        if options.file is not None:
            files = {pq.read_metadata(options.file).num_rows: str(options.file)}
        cases = []
        for number, path in files.items():
            for turn in range(options.repeats):  # each with a cache of its own
                case = {"interactions": number, "path": path, "root": f"{folder}/{number}-{turn}"}
                cases += [case | {"start": "first"}, case | {"start": "second"}]
        table = measure.medians(cases, one, 1, ["start", "interactions"], COLUMNS)
    measure.keep(table, "data", options.out, CPU)


if __name__ == "__main__":
    main()
