"""The target's rank of every test user, of one run, wherever it is stored."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet

from sigma.runs.files import CHECKOUT, RANKS

RESULTS = CHECKOUT / "results"
RANKS_FOLDER = "ranks"  # in a folder of results: a Parquet file a data set
USER = ["user", "history_length"]


def columns(run_id: str, path: Path) -> dict[str, str]:
    """Column of a file of ranks -> its name without the run's; empty where it has none."""
    names = pyarrow.parquet.read_schema(path).names
    if path.name == RANKS:
        return {name: name for name in names if name.endswith(("greater", "ties"))}
    return {n: n.removeprefix(f"{run_id}.") for n in names if n.startswith(f"{run_id}.")}


def ranks_of(run_id: str, path: Path) -> pd.DataFrame:
    """The target's rank of every test user, ordered by user and length of history.

    Args:
        path: a run's ``ranks.parquet``, or a data set's in ``ranks/``.

    Returns:
        Columns user (raw id), history_length; greater, ties among all items; unseen_greater,
        unseen_ties among those not in the history, which older runs have not (in sampled evaluation
        also or only sampled_greater, sampled_ties).
    """
    names = columns(run_id, path)
    table = pd.read_parquet(path, columns=[*USER, *names]).rename(columns=names)
    table = table.dropna(ignore_index=True)  # users of other runs' test sets
    counts = [column for column in table if column != "user"]
    table[counts] = table[counts].astype("int64")
    return table.sort_values(USER, ignore_index=True)


def full_ranks(row: Mapping[Any, Any]) -> pd.DataFrame | None:
    """``ranks_of`` a line of ``frame``; None where it was not ranked among all items.

    Not to be changed: who asks again gets the same.
    """
    if not isinstance(row["ranks"], Path):
        return None
    ranks = _read(row["run_id"], row["ranks"], row["ranks"].stat().st_mtime_ns)
    return ranks if "greater" in ranks else None


@lru_cache(maxsize=64)  # a report compares the best model's with every other's
def _read(run_id: str, path: Path, changed: int) -> pd.DataFrame:
    return ranks_of(run_id, path)
