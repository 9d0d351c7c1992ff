"""Collect the rows of finished runs, and their ranks, from multirun/ into results/.

    python -m experiments.collect [multirun] [--out results]

``rows.jsonl`` holds a row a line as its run wrote it; ``ranks/<data set>.parquet`` a data set's
test users once and columns ``<run>.greater`` and ``<run>.ties`` for each run, and
``<run>.unseen_greater`` and ``<run>.unseen_ties``, where it has them. A run that is there already
stays, unless it was finished later. ``README.md`` beside them, with the main tables, is written
anew.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from filelock import FileLock
from pydantic_core import from_json

from experiments.ranks import RANKS_FOLDER, RESULTS, USER, ranks_of
from experiments.report import front_page
from experiments.rows import ROWS, Entry, read
from experiments.status import RUNS
from sigma.errors import UserError
from sigma.files import atomic_path
from sigma.runs.files import LOCK, ROW
from sigma.runs.messages import explained
from sigma.runs.row import Row


def collect(places: Sequence[Path], out: Path) -> tuple[list[str], int, list[str]]:
    """Add to ``out`` what the places have and it has not; two processes take turns.

    Returns:
        Ids of the new rows, how many rows the places have, and notes in sentences.

    Raises:
        UserError: a place is not there, or what ``out`` holds of ranks is damaged.
    """
    entries, notes = read(places)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / LOCK):
        before = {entry.row.run_id: entry for entry in read([out])[0]}
        new = [
            entry
            for entry in entries
            if entry.row.run_id not in before
            or before[entry.row.run_id].row.finished < entry.row.finished
        ]
        if new:
            # Ranks first: were this stopped between the two, the rows would be new once more.
            notes += add_ranks(new, out / RANKS_FOLDER)
            add_rows(new, out / ROWS)
    return [entry.row.run_id for entry in new], len(entries), notes


def add_rows(new: Sequence[Entry], path: Path) -> None:
    """Lines sorted by run id; one that this version cannot read stays as it is, at the end."""
    lines: dict[str, bytes] = {}
    unread = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            lines[Row.parse(from_json(line)).run_id] = line
        except ValueError:
            unread.append(line)
    for entry in new:
        text = json.dumps(entry.content, sort_keys=True, separators=(",", ":"))
        lines[entry.row.run_id] = text.encode()
    ordered = [line for _, line in sorted(lines.items())]
    with atomic_path(path) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in [*ordered, *unread]))


def add_ranks(new: Sequence[Entry], folder: Path) -> list[str]:
    """Put each run's ranks into its data set's file, without the targets (each user's last item).

    Returns:
        Sentences on ranks that are left out.

    Raises:
        UserError: a data set's file cannot be read.
    """
    notes = []
    for dataset in sorted({entry.row.dataset for entry in new}):
        entries = [entry for entry in new if entry.row.dataset == dataset]
        path = folder / f"{dataset}.parquet"
        parts = [_table(path, [entry.row.run_id for entry in entries])]
        for entry in (entry for entry in entries if entry.ranks):
            try:
                ranks = ranks_of(entry.row.run_id, entry.ranks).set_index(USER)
                if not ranks.index.is_unique:
                    raise ValueError("a user has two ranks at one length of history")
            except (OSError, ValueError) as error:
                notes.append(f"{entry.name} counts without its ranks ({error}).")
                continue
            parts.append(ranks.add_prefix(f"{entry.row.run_id}."))
        table = pd.concat(parts, axis=1).dropna(how="all").sort_index(axis=0).sort_index(axis=1)
        if table.empty:
            path.unlink(missing_ok=True)
            continue
        table = table.astype("Int64").apply(pd.to_numeric, downcast="integer").reset_index()
        with atomic_path(path) as partial:
            table.to_parquet(partial, index=False, compression="zstd", compression_level=19)
    return notes


def _table(path: Path, run_ids: Sequence[str]) -> pd.DataFrame:
    """A data set's ranks, without those of some runs."""
    if not path.is_file():
        return pd.DataFrame(index=pd.MultiIndex.from_arrays([[], []], names=USER))
    try:
        table = pd.read_parquet(path).set_index(USER)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it from git.") from error
    return table[[name for name in table if str(name).rpartition(".")[0] not in run_ids]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.collect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("places", nargs="*", type=Path, default=[RUNS], help="folders of runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    new, total, notes = collect(options.places, options.out)
    for note in notes:
        print(note)
    if not total:
        places = ", ".join(map(str, options.places))
        raise UserError(f"There is no finished run in {places}: no folder there holds {ROW}.")
    print(f"{len(new)} of {total} rows are new in {options.out}")
    front_page(options.out)


if __name__ == "__main__":
    with explained():
        main()
