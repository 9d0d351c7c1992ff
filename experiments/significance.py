"""Means, deviations and paired tests over seeds and over users; each user's own metric."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from experiments.ranks import USER, full_ranks

Array = np.ndarray[Any, Any]


def gains(ranks: pd.DataFrame, metric: str) -> Array:
    """(users,) float64: each user's expected metric by the project's tie rule; empty where there
    are no ranks of its ranking.

    Args:
        ranks: columns ``greater`` and ``ties``, see ``sigma.ranking.metrics.target_ranks``; among
            unseen items ``unseen_greater`` and ``unseen_ties``.
        metric: such as ``hr@10``, or ``unseen/hr@10``.
    """
    # Here: most of what reads rows asks for no user's gains and goes without PyTorch.
    import torch

    from sigma.ranking.metrics import expected_gains, gain_table

    ranking, _, metric = metric.rpartition("/")
    columns = [f"{ranking}_{name}".lstrip("_") for name in ("greater", "ties")]
    if not set(columns) <= set(ranks):
        return np.empty(0)
    name, cut = metric.split("@")
    above, ties = (torch.tensor(ranks[column].to_numpy(dtype="int64")) for column in columns)
    return expected_gains(gain_table(name, int(cut)), above, ties).numpy()


def mean_sd(rows: pd.DataFrame, metric: str) -> tuple[float, float, int]:
    """Mean, standard deviation (n - 1) and number of seeds; NaN where there are too few."""
    values = pd.to_numeric(rows[metric]).dropna() if metric in rows else pd.Series(dtype=float)
    return float(values.mean()), float(values.std(ddof=1)), len(values)


def paired(ours: pd.DataFrame, theirs: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """These columns of pairs of rows of one seed, theirs with `` theirs`` behind their names.

    A counted model draws nothing, so its one row stands for every seed.
    """
    every = any(len(rows) == 1 and rows["counted"].all() for rows in (ours, theirs))
    ours, theirs = (rows.reindex(columns=["seed", *columns]) for rows in (ours, theirs))
    how: dict[str, Any] = {"how": "cross"} if every else {"on": "seed"}
    return ours.merge(theirs, **how, suffixes=("", " theirs")).drop(columns="seed")


def common(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> Array:
    """(seeds, 2): a metric of ``paired`` rows, where both have it."""
    pairs = paired(ours, theirs, metric)[[metric, f"{metric} theirs"]]
    return pairs.dropna().to_numpy(dtype=float)


def p_value(differences: Array) -> float:
    """One-sided paired t-test of the mean difference being above 0; NaN below two."""
    if len(differences) < 2:
        return np.nan
    if np.ptp(differences) == 0:  # no deviation to divide by
        return 0.0 if differences[0] > 0 else 1.0
    return float(stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue)


def seed_differences(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> Array:
    """(seeds,): ours less theirs of a metric of rows, such as ``test/unseen/hr@10``."""
    values = common(ours, theirs, metric)
    return values[:, 0] - values[:, 1]


def user_differences(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> tuple[Array, int]:
    """(users,): each test user's difference of a metric of ``gains``, averaged over common seeds.

    Returns:
        Differences, empty without ranks of both, and the number of seeds.
    """
    differences = []
    for pair in paired(ours, theirs, "run_id", "ranks").to_dict("records"):
        mine = full_ranks(pair)
        yours = full_ranks({key: pair[f"{key} theirs"] for key in ("run_id", "ranks")})
        if mine is not None and yours is not None and mine[USER].equals(yours[USER]):
            values = gains(mine, metric), gains(yours, metric)
            if len(values[0]) == len(values[1]) == len(mine):
                differences.append(values[0] - values[1])
    users = np.mean(differences, axis=0) if differences else np.empty(0)
    return users, len(differences)


def holm(p_values: Sequence[float]) -> Array:
    """Holm's correction for the number of comparisons that there are; NaN stays."""
    corrected = np.array(p_values, dtype=float)
    order = np.argsort(corrected)  # NaN come last
    left = np.count_nonzero(~np.isnan(corrected)) - np.arange(len(corrected))
    corrected[order] = np.minimum(np.maximum.accumulate(corrected[order] * left), 1)
    return corrected
