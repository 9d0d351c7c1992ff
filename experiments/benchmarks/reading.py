"""From files to sequences on this checkout beside another, as ratios, and that both are the same.

    git worktree add ../before 189f23b
    python -m experiments.benchmarks.reading ../before beauty.txt ml-100k large.parquet

``--out results/benchmarks`` writes ``reading.csv``. Each case is a process of its own that reads,
filters, orders and splits a file without a cache; the two checkouts take turns. Memory is the peak
above that of the imports.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir

import pandas as pd
import torch

from experiments.benchmarks import measure

READ = """
import json, resource, sys, tempfile, time
from sigma.datamodules.sets.custom import Custom
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
with tempfile.TemporaryDirectory(dir=sys.argv[2]) as root:
    start = time.perf_counter()
    data = Custom(path=sys.argv[1], root=root, malformed="skip")
    data.setup()
    seconds = time.perf_counter() - start
    content = data.sequences.fingerprint()
    size = len(data.sequences.items)
print(json.dumps([seconds, peak() - before, content, size]))
"""


def read(checkout: Path, path: Path, folder: Path) -> tuple[float, float, str, int]:
    """Seconds, MiB, a digest of the sequences and their interactions, by a checkout's code."""
    command = [sys.executable, "-c", READ, str(path.resolve()), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    output = subprocess.run(
        command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE
    ).stdout
    seconds, mib, content, size = json.loads(output.splitlines()[-1])
    return seconds, mib, content, size


def main() -> None:
    arguments = measure.parser(__doc__)
    arguments.add_argument("checkout", type=Path, help="the other code")
    arguments.add_argument("files", type=Path, nargs="+")
    arguments.add_argument(
        "--folder", type=Path, default=Path(gettempdir()), help="for what is written"
    )
    options = arguments.parse_args()
    codes = {"this": measure.ROOT, "other": options.checkout}
    lines = []
    for path in options.files:
        results: dict[str, list[tuple[float, float, str, int]]] = {code: [] for code in codes}
        for turn in range(options.repeats):
            for code, checkout in codes.items():
                print(f"{turn + 1}/{options.repeats} {path.name} {code}", file=sys.stderr)
                results[code].append(read(checkout, path, options.folder))
        line: dict[str, object] = {"file": path.name}
        for code, values in results.items():
            line[f"seconds {code}"] = statistics.median(v[0] for v in values)
            line[f"peak_mib {code}"] = statistics.median(v[1] for v in values)
        (this,), (other,) = ({v[2:] for v in results[code]} for code in codes)
        line["interactions"], line["equal"] = this[1], this == other
        for of in ("seconds", "peak_mib"):
            line[f"{of} ratio"] = line[f"{of} this"] / line[f"{of} other"]  # type: ignore[operator]
        lines.append(line)
    table = pd.DataFrame(lines).set_index("file")
    measure.keep(table, "reading", options.out, torch.device("cpu"))


if __name__ == "__main__":
    main()
