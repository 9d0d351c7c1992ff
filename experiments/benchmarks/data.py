"""From a Parquet file to the first batch: seconds and memory against interactions.

    python -m experiments.benchmarks.data --interactions 100000 1000000 --out results/benchmarks

The file is made by a seed and has users and items of a long tail, int64 ids and seconds. ``first``
reads, filters, orders and splits it and takes one batch; ``second`` starts from the cache. Memory
is the peak of the process above what it was once everything was imported.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.measure import Case, Memory, device, keep, parser, rounds, summary
from experiments.canvas import picture


def write(path: Path, n: int, seed: int = 2020) -> None:
    """``n`` interactions of about ``n / 40`` users with ``n / 200`` items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    table = pa.table(
        {
            "user_id": (rng.random(n) ** 2 * n / 40).astype(np.int64) * 7,
            "item_id": (rng.random(n) ** 3 * n / 200).astype(np.int64) * 3,
            "timestamp": rng.integers(1_300_000_000, 1_500_000_000, n),
        }
    )
    pq.write_table(table, path)


def one(case: Case) -> Case:
    from sigma.datamodules.sets.custom import Custom

    memory = Memory(device("cpu"))
    start = time.perf_counter()
    data = Custom(path=case["path"], root=case["root"])
    data.setup()
    ready = time.perf_counter()
    batch = next(iter(data.train_dataloader()))
    end = time.perf_counter()
    assert len(batch.targets) == data.batch_size
    return {
        "seconds": end - start,
        "first_batch_seconds": end - ready,
        "peak_mib": memory.mib(),
        "users": data.statistics.users,
        "items": data.num_items,
    }


def main() -> None:
    made = parser(__doc__)
    sizes = [100_000, 1_000_000, 10_000_000]
    made.add_argument("--interactions", type=int, nargs="+", default=sizes)
    options = made.parse_args()
    if options.one is not None:  # its file is there already
        rounds("experiments.benchmarks.data", [], 0, one, options.one)
    with tempfile.TemporaryDirectory() as folder:
        cases = []
        for n in options.interactions:
            path = Path(folder) / f"{n}.parquet"
            write(path, n)
            for turn in range(options.repeats):
                root = f"{folder}/{n}-{turn}"
                cases += [
                    {"start": start, "interactions": n, "path": str(path), "root": root}
                    for start in ("first", "second")
                ]
        frame = rounds("experiments.benchmarks.data", cases, 1, one, None)
    table = summary(frame, ["start", "interactions"], "seconds")
    keep(table, "data", options.out, device("cpu"))
    if options.out is not None:
        draw(table, options.out / "data.png")


def draw(table: Any, path: Path) -> None:
    """Seconds and memory over interactions."""
    figure = picture(8, 3.6)
    for i, (column, label) in enumerate(
        [("seconds", "file to first batch, seconds"), ("peak_mib", "memory above imports, MiB")],
        start=1,
    ):
        axes = figure.add_subplot(1, 2, i)
        for start, colour, marker in (("first", "#0072B2", "o"), ("second", "#D55E00", "s")):
            line = table.xs(start, level="start")[column]
            axes.plot(line.index, line, color=colour, marker=marker, label=f"{start} start")
        axes.set_xscale("log")
        axes.set_yscale("log" if (table[column] > 0).all() else "linear")
        axes.set_xlabel("interactions")
        axes.set_ylabel(label)
        axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
