"""What a finished run's folder tells W&B: numbers for the summary, and the ranks as two tables."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sigma.ranking.metrics import METRICS, expected_gains, gain_table

SAMPLE_LINES = 10_000  # of the table of ranks; W&B shows no more of a table at once
K = 10
# Lower ends, in doubling steps that keep to the paper's groups [0, 5), [5, 20) and [20, …).
HISTORY_BINS = (0, 3, 5, 10, 20, 50, 100)
RANK_BINS = (1, 2, 6, 11, 21, 101, 1001)


def summary(row: dict[str, Any]) -> dict[str, float]:
    """``best/…``, ``test/…`` and ``efficiency/…`` of a result row (see ``ResultRow``)."""
    found = {f"best/val/{name}": value for name, value in row["metrics"]["val"].items()}
    found |= {f"test/{name}": value for name, value in row["metrics"]["test"].items()}
    if row["best_epoch"] is not None:
        found["best/epoch"] = row["best_epoch"]
    found |= {f"efficiency/{name}": value for name, value in row["efficiency"].items()}
    return found | {"efficiency/parameters": row["parameters"], "efficiency/epochs": row["epochs"]}


def prefix_of(ranks: pd.DataFrame) -> str:
    """``sampled_`` where targets were ranked among drawn negatives, else nothing."""
    return next(str(name) for name in ranks.columns if name.endswith("greater"))[: -len("greater")]


def user_lines(ranks: pd.DataFrame) -> pd.DataFrame:
    """Each test sample's expected rank and its part in HR, NDCG and MRR@10, ties at random.

    Args:
        ranks: what ``ranks.parquet`` holds.

    Returns:
        ``line`` (of ``ranks.parquet``: the same user in every run on the same data, and no raw id
        leaves the machine), ``history_length``, ``rank`` (from 1), ``ties``, ``hr@10``, … ; names
        carry ``sampled_`` as in the file.
    """
    prefix = prefix_of(ranks)
    greater = ranks[f"{prefix}greater"].to_numpy()
    ties = ranks[f"{prefix}ties"].to_numpy()
    lines = pd.DataFrame(
        {
            "line": np.arange(len(ranks)),
            "history_length": ranks["history_length"].to_numpy(),
            f"{prefix}rank": greater + 1 + ties / 2,
            f"{prefix}ties": ties,
        }
    )
    counts = [torch.tensor(column, dtype=torch.int64) for column in (greater, ties)]
    for name in METRICS:
        lines[f"{prefix}{name}@{K}"] = expected_gains(gain_table(name, K), *counts).numpy()
    return lines


def sample(lines: pd.DataFrame, number: int = SAMPLE_LINES) -> pd.DataFrame:
    """At most ``number`` lines, evenly spaced, the first and the last among them."""
    if len(lines) <= number:
        return lines
    return lines.iloc[np.linspace(0, len(lines) - 1, number).round().astype(int)]


def bin_names(lower: Sequence[int]) -> list[str]:
    """``1``, ``2-5``, …, ``1001-``: what lies from each lower end up to the next."""
    upper = [following - 1 for following in lower[1:]]
    ends = zip(lower, upper, strict=False)
    return [f"{a}" if a == b else f"{a}-{b}" for a, b in ends] + [f"{lower[-1]}-"]


def by_history(ranks: pd.DataFrame) -> pd.DataFrame:
    """All test samples by history length: how many, their metrics, and how ranks are spread.

    Args:
        ranks: what ``ranks.parquet`` holds.

    Returns:
        A line for each bin that holds samples: ``history_length`` (``5-9``), ``samples``, the mean
        of each metric, ``median_rank``, and the expected number of samples with the rank ``rank
        1``, ``rank 2-5``, … ; names carry ``sampled_`` as in the file.
    """
    prefix = prefix_of(ranks)
    lines = user_lines(ranks)
    metrics = [f"{prefix}{name}@{K}" for name in METRICS]
    # Ties spread a sample evenly over its possible ranks.
    ties = lines[f"{prefix}ties"].to_numpy()
    first = lines[f"{prefix}rank"].to_numpy() - ties / 2
    ends = np.array([*RANK_BINS, np.inf])
    below = np.clip(ends - first[:, None], 0, ties[:, None] + 1)
    names = [f"{prefix}rank {name}" for name in bin_names(RANK_BINS)]
    lines[names] = np.diff(below, axis=1) / (ties[:, None] + 1)
    position = np.searchsorted(HISTORY_BINS, lines["history_length"], side="right") - 1
    groups = lines.groupby(position)
    table = pd.concat(
        [
            groups.size().rename("samples"),
            groups[metrics].mean(),
            groups[f"{prefix}rank"].median().rename(f"{prefix}median_rank"),
            groups[names].sum(),
        ],
        axis=1,
    )
    table.insert(0, "history_length", [bin_names(HISTORY_BINS)[i] for i in table.index])
    return table.reset_index(drop=True)


def tables(ranks: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of a run by their W&B keys."""
    lines = sample(user_lines(ranks))
    return {"ranks/users_sample": lines, "ranks/by_history": by_history(ranks)}


@contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """A table's copy for upload stays with the run: W&B's own place, the home, may be read-only."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = before


def log_results(run: Any, folder: Path, test: Mapping[str, float]) -> None:
    """Add what the folder holds to a W&B run; nothing where it holds no row of this very test.

    Args:
        run: W&B's.
        folder: the run's.
        test: the test metrics as logged, by which an earlier run's row is told.
    """
    row_path, ranks_path = folder / "row.json", folder / "ranks.parquet"
    if not row_path.is_file() or not ranks_path.is_file():
        return
    row = json.loads(row_path.read_text())
    if {f"test/{name}": value for name, value in row["metrics"]["test"].items()} != test:
        return
    run.summary.update(summary(row))
    from wandb import Table

    with staged_in(folder / "wandb"):
        found = tables(pd.read_parquet(ranks_path))
        run.log({name: Table(dataframe=table) for name, table in found.items()})
