"""Mean, deviation and the tests behind a star: over seeds and over users."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from experiments.ledger import Row


def mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None, int]:
    """Mean, standard deviation (n - 1; None below two) and number of those that are there."""
    there = [v for v in values if v is not None]
    if not there:
        return None, None, 0
    deviation = float(np.std(there, ddof=1)) if len(there) > 1 else None
    return float(np.mean(there)), deviation, len(there)


def paired(ours: Sequence[Row], theirs: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of common seeds; a counted model draws nothing, so its one row stands for every seed."""
    if len(theirs) == 1 and theirs[0].counted:
        return [(row, theirs[0]) for row in ours]
    other = {row.seed: row for row in theirs}
    return [(row, other[row.seed]) for row in ours if row.seed in other]


def paired_values(
    ours: Sequence[Row], theirs: Sequence[Row], split: str, metric: str
) -> list[tuple[float, float]]:
    """A metric of ``paired`` rows, where both have it."""
    pairs = ((a.metric(split, metric), b.metric(split, metric)) for a, b in paired(ours, theirs))
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def over_seeds(ours: Sequence[Row], theirs: Sequence[Row], metric: str) -> tuple[float | None, int]:
    """One-sided paired t-test over common seeds, of ours being larger: p (None below two), n."""
    differences = [a - b for a, b in paired_values(ours, theirs, "test", metric)]
    if len(differences) < 2:
        return None, len(differences)
    if np.ptp(differences) == 0:  # a t-test of equal differences has no deviation to divide by
        return (0.0 if differences[0] > 0 else 1.0), len(differences)
    test = stats.ttest_1samp(differences, 0.0, alternative="greater")
    return float(test.pvalue), len(differences)


def over_users(
    ours: Sequence[Row], theirs: Sequence[Row], metric: str
) -> tuple[float | None, float | None, int]:
    """One-sided paired t-test over test users, each user's metric averaged over common seeds.

    Returns:
        Mean difference, p (both None without ranks of both), and the number of seeds.
    """
    differences = []
    for row, other in paired(ours, theirs):
        mine, yours = row.per_user(metric), other.per_user(metric)
        if mine is None or yours is None or not mine.index.equals(yours.index):
            continue
        differences.append((mine - yours).to_numpy())
    if not differences:
        return None, None, 0
    per_user = np.mean(differences, axis=0)
    if np.ptp(per_user) == 0:
        return float(per_user[0]), 1.0, len(differences)
    test = stats.ttest_1samp(per_user, 0.0, alternative="greater")
    return float(per_user.mean()), float(test.pvalue), len(differences)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction for the number of comparisons that were made."""
    made = sorted((p, at) for at, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for place, (p, at) in enumerate(made):
        largest = max(largest, min(1.0, p * (len(made) - place)))
        corrected[at] = largest
    return corrected
