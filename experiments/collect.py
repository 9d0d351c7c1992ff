"""Keep the rows of finished runs, and their ranks, as small files: from multirun/ to results/rows/.

    python -m experiments.collect [multirun] [--out results/rows]

``<run>.json`` is the row as it was written; ``<run>.ranks.parquet`` its ranks, compressed,
without the targets. What is there already
stays, unless the run was finished later.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.ledger import Row, read
from experiments.render import replace
from experiments.status import RUNS, told
from sigma.errors import UserError
from sigma.runs.files import atomic_path
from sigma.runs.messages import explained

ROWS = Path(__file__).parents[1] / "results" / "rows"


def keep(row: Row, folder: Path) -> bool:
    """Copy one row and its ranks, whole or not at all; False where the same is there already."""
    target = folder / f"{row.run_id}.json"
    if target.exists():
        before = told(target).get("finished", "")  # damaged: it is replaced
        if str(before) >= str(row.content["finished"]):
            return False
    if row.ranks_path is not None:
        # The target is the user's last item whatever the model; half of the file would be it.
        frame = pd.read_parquet(row.ranks_path).drop(columns="target", errors="ignore")
        for name in ("history_length", *(c for c in frame if c.endswith(("greater", "ties")))):
            frame[name] = pd.to_numeric(frame[name], downcast="integer")
        with atomic_path(target.with_suffix(".ranks.parquet")) as partial:
            frame.to_parquet(partial, index=False, compression="zstd", compression_level=19)
    replace(target, row.path.read_bytes())
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.collect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="*", type=Path, default=[RUNS], help="folders of runs")
    parser.add_argument("--out", type=Path, default=ROWS)
    given = parser.parse_args(arguments)
    ledger = read(given.places)
    given.out.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(given.out).free < 2**26:
        raise UserError(f"Less than 64 MiB are free where {given.out} is; free some space.")
    kept = [row.run_id for row in ledger.rows if keep(row, given.out)]
    for note in ledger.notes:
        print(note)
    print(f"{len(kept)} of {len(ledger.rows)} rows are new in {given.out}")


if __name__ == "__main__":
    with explained():
        main()
