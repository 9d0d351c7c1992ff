"""Rows as runs would have written them, with numbers made from their names: no training."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.grid import Job

USERS = 60
DATA = {"users": USERS, "items": 90, "interactions": 900, "average_length": 15.0,
        "sparsity": 0.83, "train_samples": 700, "test_samples": USERS}  # fmt: skip


def made(job: Job) -> tuple[dict[str, Any], pd.DataFrame]:
    """A row and its ranks; the same for the same job, and metrics are those of the ranks."""
    from experiments.ledger import gains

    draw = np.random.default_rng(zlib.crc32(job.run_id.encode()))
    ranks = pd.DataFrame(
        {
            "user": [str(u) for u in range(USERS)],
            "history_length": np.arange(USERS) % 30 + 2,
            "greater": draw.geometric(0.03 + 0.02 * draw.random(), USERS) - 1,
            "ties": np.zeros(USERS, dtype=int),
        }
    )
    metrics: dict[str, dict[str, float]] = {"val": {}, "test": {}}
    groups = {"short": (0, 5), "medium": (5, 20), "long": (20, 999)}
    for metric in ("hr@10", "ndcg@10", "mrr@10"):
        each = gains(ranks, metric)
        for split, factor in (("val", 1.2), ("test", 1.0)):
            metrics[split][metric] = float(each.mean()) * factor
            for group, (low, high) in groups.items():
                inside = ranks["history_length"].between(low, high - 1)
                metrics[split][f"{group}/{metric}"] = float(each[inside].mean()) * factor
    row = {
        "schema": 2, "model": job.model, "dataset": job.dataset, "seed": job.seed,
        "metrics": metrics, "best_epoch": 3, "epochs": 14,
        "parameters": 0 if "Counted" in str(job.config["objective"]) else 1000,
        "data": DATA,
        "efficiency": {"train_seconds": 10.0, "eval_seconds": 2.0},
        "git": {"commit": "0123456789", "dirty": False}, "versions": {"torch": "2.13.0"},
        "hardware": {"cpu": "A CPU", "threads": 2}, "finished": "2026-01-01T00:00:00+00:00",
        "config": job.config,
    }  # fmt: skip
    return row, ranks


def write(folder: Path, jobs: Iterable[Job], **changes: Any) -> list[Path]:
    """Files of ``results/rows`` for jobs; ``changes`` replace keys of the row."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for job in jobs:
        row, ranks = made(job)
        path = folder / f"{job.run_id}.json"
        path.write_text(json.dumps(row | changes))
        ranks.to_parquet(path.with_suffix(".ranks.parquet"))
        paths.append(path)
    return paths
