"""Rows as runs would have written them, with numbers made from their names: no training."""

import json
import zlib
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.grid import Job, expand
from experiments.rows import BEYOND, METRICS, RANKINGS
from experiments.significance import gains

USERS = 60
DATA = {"users": USERS, "items": 90, "interactions": 900, "average_length": 15.0, "sparsity": 0.83}
DATA |= {"train_samples": 700, "val_samples": USERS, "test_samples": USERS}
REPEATS = {"val_repeats": 2, "test_repeats": 3}
GROUPS = {"short": (0, 4), "medium": (5, 19), "long": (20, 999)}
BEAUTY = ("experiment=table2_overall", "dataset=beauty")


def beauty(*overrides: str) -> list[Job]:
    """Runs of Table 2 on Beauty."""
    return expand([*BEAUTY, *overrides])


def ranks_of_job(job: Job) -> pd.DataFrame:
    """The same for the same job; among unseen items a third of what is above has gone."""
    draw = np.random.default_rng(zlib.crc32(job.run_id.encode()))
    greater = draw.geometric(0.03 + 0.02 * draw.random(), USERS) - 1
    columns = {"user": [*map(str, range(USERS))], "target": "an item"}
    columns |= {"history_length": np.arange(USERS) % 30 + 2, "greater": greater}
    columns["ties"] = draw.integers(0, 2, USERS)
    columns |= {"unseen_greater": draw.binomial(greater, 2 / 3), "unseen_ties": columns["ties"]}
    return pd.DataFrame(columns)


def content(job: Job, rankings: Iterable[str] = RANKINGS.values()) -> dict[str, Any]:
    """A row whose metrics are those of its ranks; older ones know but one ranking."""
    ranks = ranks_of_job(job)
    metrics: dict[str, dict[str, float]] = {"val": {}, "test": {}}
    if job.config["evaluation"]["sampled"]:
        rankings = ["sampled_"]
    for ranking, metric in product(rankings, METRICS):
        each = gains(ranks, metric if ranking == "sampled_" else ranking + metric)
        for split, factor in (("val", 1.2), ("test", 1.0)):
            metrics[split][ranking + metric] = float(each.mean()) * factor
            for group, limits in GROUPS.items():
                inside = ranks["history_length"].between(*limits)
                value = float(each[inside].mean()) * factor
                metrics[split][f"{ranking}{group}/{metric}"] = value
            if "unseen/" in rankings:
                metrics[split] |= {ranking + name: 0.5 for name in BEYOND}
    data = DATA | REPEATS if "unseen/" in rankings else DATA
    return {
        "schema": 3,
        "model": job.model,
        "dataset": job.dataset,
        "seed": job.seed,
        "metrics": metrics,
        "best_epoch": 3,
        "epochs": 14,
        "parameters": 0 if "Counted" in str(job.config["objective"]) else 1000,
        "data": data,
        "efficiency": {"train_seconds": 10.0, "eval_seconds": 2.0},
        "git": {"commit": "0123456789", "dirty": False},
        "versions": {"torch": "2.13.0"},
        "hardware": {"cpu": "A CPU", "threads": 2},
        "finished": "2026-01-01T00:00:00+00:00",
        "config": job.config,
    }


def write(
    folder: Path, jobs: Iterable[Job], rankings: Iterable[str] = RANKINGS.values(), **changes: Any
) -> list[Path]:
    """A folder for each run, with row and ranks; ``changes`` replace keys of the row."""
    paths, rankings = [], tuple(rankings)
    for job in jobs:
        path = folder / job.run_id
        path.mkdir(parents=True, exist_ok=True)
        (path / "row.json").write_text(json.dumps(content(job, rankings) | changes))
        ranks = ranks_of_job(job)
        if "unseen/" not in rankings:
            ranks = ranks.drop(columns=["unseen_greater", "unseen_ties"])
        ranks.to_parquet(path / "ranks.parquet")
        paths.append(path)
    return paths
