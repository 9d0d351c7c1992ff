"""Means, deviations and paired tests over seeds and over users; each user's own metric."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from experiments.ranks import full_ranks


def gains(ranks: pd.DataFrame, metric: str) -> np.ndarray[Any, Any]:
    """(users,) float64: each user's expected metric, such as ``hr@10``, by the project's tie rule.

    Args:
        ranks: columns ``greater`` and ``ties``, see ``sigma.ranking.metrics.target_ranks``.
    """
    # Here: most of what reads rows asks for no user's gains and goes without PyTorch.
    import torch

    from sigma.ranking.metrics import expected_gains, gain_table

    name, cut = metric.split("@")
    above, ties = (torch.tensor(ranks[c].to_numpy(dtype="int64")) for c in ("greater", "ties"))
    return expected_gains(gain_table(name, int(cut)), above, ties).numpy()


def mean_sd(rows: pd.DataFrame, metric: str) -> tuple[float, float, int]:
    """Mean, standard deviation (n - 1) and number of the seeds that have ``test/ndcg@10``; NaN
    where there are too few.
    """
    values = pd.to_numeric(rows[metric]).dropna() if metric in rows else pd.Series(dtype=float)
    return float(values.mean()), float(values.std(ddof=1)), len(values)


def paired(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of rows of one seed, theirs in columns that end with `` theirs``.

    A counted model draws nothing, so its one row stands for every seed.
    """
    same: dict[str, Any] = {"how": "inner", "on": "seed"}
    if len(theirs) == 1 and theirs["counted"].all():
        same = {"how": "cross"}
    return ours.merge(theirs, suffixes=("", " theirs"), **same)


def common(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> np.ndarray[Any, Any]:
    """(seeds, 2): a metric of ``paired`` rows, where both have it."""
    pairs = paired(ours, theirs)
    if metric not in pairs:
        return np.empty((0, 2))
    return pairs[[metric, f"{metric} theirs"]].dropna().to_numpy(dtype=float)


def over_seeds(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> tuple[float, int]:
    """One-sided paired t-test over common seeds, of ours being larger: p (NaN below two), n."""
    values = common(ours, theirs, metric)
    differences = values[:, 0] - values[:, 1]
    if len(differences) < 2:
        return np.nan, len(differences)
    if np.ptp(differences) == 0:  # no deviation to divide by
        return (0.0 if differences[0] > 0 else 1.0), len(differences)
    return float(stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue), len(values)


def over_users(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> tuple[float, float, int]:
    """One-sided paired t-test over test users, each user's metric averaged over common seeds.

    Returns:
        Mean difference, p (both NaN without ranks of both), and the number of seeds.
    """
    differences = []
    for pair in paired(ours, theirs).to_dict("records"):
        sides = (pair, {key: pair[f"{key} theirs"] for key in ("run_id", "ranks")})
        mine, yours = (full_ranks(side) for side in sides)
        keys = ["user", "history_length"]
        if mine is not None and yours is not None and mine[keys].equals(yours[keys]):
            differences.append(gains(mine, metric) - gains(yours, metric))
    if not differences:
        return np.nan, np.nan, 0
    users = np.mean(differences, axis=0)
    if np.ptp(users) == 0:
        return float(users[0]), 1.0, len(differences)
    p = float(stats.ttest_1samp(users, 0.0, alternative="greater").pvalue)
    return float(users.mean()), p, len(differences)


def holm(p_values: Sequence[float]) -> np.ndarray[Any, Any]:
    """Holm's correction for the number of comparisons that there are; NaN stays."""
    corrected = np.array(p_values, dtype=float)
    tested = ~np.isnan(corrected)
    if tested.any():
        corrected[tested] = multipletests(corrected[tested], method="holm")[1]
    return corrected
