"""From a Parquet file to the first batch: seconds and memory against interactions.

    python -m experiments.benchmarks.data --out results/benchmarks

writes ``data.csv``. The file is made by a seed; users and items have a long tail. ``first`` reads,
filters, orders and splits it and takes one batch; ``second`` starts from the cache. Memory is the
peak of the process above what it was once everything was imported.
"""

import tempfile
import time

import numpy as np
import pandas as pd
import torch

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case
from sigma.datamodules.sets.custom import Custom

CPU = torch.device("cpu")
COLUMNS = ["seconds", "first_batch_seconds", "peak_mib", "users", "items"]


def write(path: str, number: int) -> None:
    """``number`` interactions of about ``number / 40`` users with ``number / 200`` items."""
    rng = np.random.default_rng(2020)
    users = (rng.random(number) ** 2 * number / 40).astype(np.int64) * 7
    items = (rng.random(number) ** 3 * number / 200).astype(np.int64) * 3
    times = rng.integers(1_300_000_000, 1_500_000_000, number)
    pd.DataFrame({"user_id": users, "item_id": items, "timestamp": times}).to_parquet(path)


def one(case: Case) -> Case:
    """Seconds and MiB from the file, or its cache, to one batch."""
    memory = measure.Memory(CPU)
    start = time.perf_counter()
    data = Custom(path=case["path"], root=case["root"])
    data.setup()
    ready = time.perf_counter()
    next(iter(data.train_dataloader()))
    end = time.perf_counter()
    values = (end - start, end - ready, memory.mib(), data.statistics.users, data.num_items)
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    arguments = measure.parser(__doc__)
    sizes = [100_000, 1_000_000, 10_000_000]
    arguments.add_argument("--interactions", type=int, nargs="+", default=sizes)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = []
        for number in options.interactions:
            path = f"{folder}/{number}.parquet"
            write(path, number)
            for turn in range(options.repeats):  # each with a cache of its own
                case = {"interactions": number, "path": path, "root": f"{folder}/{number}-{turn}"}
                cases += [case | {"start": "first"}, case | {"start": "second"}]
        table = measure.medians(cases, one, 1, ["start", "interactions"], COLUMNS)
    measure.keep(table, "data", options.out, CPU)


if __name__ == "__main__":
    main()
