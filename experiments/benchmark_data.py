"""How long, and how much memory, from a Parquet file to the first batch.

python experiments/benchmark_data.py [interactions ...]    (default 1,000,000 and 10,000,000)

Each size runs in a process of its own, without the cache; the file is made by a seed and has
users and items of a long tail, int64 ids and seconds. Peak memory is that of the process (RSS),
beside what it was once everything was imported.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write(path: Path, n: int, seed: int = 2020) -> None:
    """``n`` interactions of about ``n / 40`` users with ``n / 200`` items."""
    rng = np.random.default_rng(seed)
    table = pa.table(
        {
            "user_id": (rng.random(n) ** 2 * n / 40).astype(np.int64) * 7,
            "item_id": (rng.random(n) ** 3 * n / 200).astype(np.int64) * 3,
            "timestamp": rng.integers(1_300_000_000, 1_500_000_000, n),
        }
    )
    pq.write_table(table, path)


def peak() -> float:
    """Peak resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: Path, cache: Path) -> None:
    """Read, filter, order, split and take one batch, printing what each took."""
    from sigma.datamodules.custom import Custom

    before = peak()
    for attempt in ("first start", "second start, from the cache"):
        start = time.perf_counter()
        data = Custom(path=str(path), root=str(cache))
        data.setup()
        ready = time.perf_counter()
        batch = next(iter(data.train_dataloader()))
        end = time.perf_counter()
        assert batch.items.shape[0] == data.batch_size
        stats = data.statistics
        print(
            f"{attempt}: {stats.interactions:,} interactions of {stats.users:,} users with "
            f"{stats.items:,} items; setup {ready - start:.2f} s, first batch {end - ready:.2f} s, "
            f"peak memory {peak():.0f} MB, {peak() - before:.0f} MB above imports",
            flush=True,
        )
        del data, batch


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--measure":
        return measure(Path(sys.argv[2]), Path(sys.argv[3]))
    for n in [int(a.replace(",", "")) for a in sys.argv[1:]] or [1_000_000, 10_000_000]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "interactions.parquet"
            write(path, n)
            print(f"{n:,} interactions, {path.stat().st_size / 1e6:.0f} MB of Parquet", flush=True)
            subprocess.run([sys.executable, __file__, "--measure", path, folder], check=True)


if __name__ == "__main__":
    main()
