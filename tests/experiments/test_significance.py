"""Means, deviations and tests, held against SciPy and hand-computed cases."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.grid import expand
from experiments.ranks import full_ranks
from experiments.rows import frame
from experiments.significance import (
    common,
    gains,
    holm,
    mean_sd,
    p_value,
    seed_differences,
    user_differences,
)
from tests.experiments.rows import beauty, write

NDCG = "test/ndcg@10"


def models(rows: pd.DataFrame, *names: str) -> list[pd.DataFrame]:
    return [rows[rows["model"] == name] for name in names]


def test_mean_and_deviation_by_hand() -> None:
    assert mean_sd(pd.DataFrame({"m": [1.0, 2.0, 3.0, None]}), "m") == (2.0, 1.0, 3)
    mean, deviation, n = mean_sd(pd.DataFrame({"m": [2.0]}), "m")
    assert (mean, math.isnan(deviation), n) == (2.0, True, 1)
    assert mean_sd(pd.DataFrame({"m": [None]}), "m")[2] == mean_sd(pd.DataFrame(), "m")[2] == 0


def test_holm_by_hand() -> None:
    # 0.01 × 3, 0.02 × 2, then 0.03 × 1, which may not fall below the one before.
    corrected = holm([0.03, math.nan, 0.01, 0.02])
    assert corrected == pytest.approx([0.04, math.nan, 0.03, 0.04], nan_ok=True)
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert np.isnan(holm([math.nan])).all()


def test_paired_tests_are_scipys(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sigma,sasrec", "seed=1,2,3,4"))
    sigma, sasrec = models(frame([tmp_path]).sort_values("seed"), "sigma", "sasrec")
    expected = stats.ttest_rel(sigma[NDCG], sasrec[NDCG], alternative="greater").pvalue
    seeds = seed_differences(sigma, sasrec, NDCG)
    assert (len(seeds), p_value(seeds)) == (4, pytest.approx(expected))
    users = [
        np.mean([gains(full_ranks(row), "ndcg@10") for row in rows.to_dict("records")], axis=0)
        for rows in (sigma, sasrec)
    ]
    differences, n = user_differences(sigma, sasrec, "ndcg@10")
    assert (n, differences) == (4, pytest.approx(users[0] - users[1]))
    expected = stats.ttest_rel(*users, alternative="greater").pvalue
    assert p_value(differences) == pytest.approx(expected)
    assert math.isnan(p_value(seed_differences(sigma[:1], sasrec, NDCG)))
    # No difference at all is no improvement.
    assert p_value(seed_differences(sigma, sigma, NDCG)) == 1.0
    assert p_value(user_differences(sigma, sigma, "ndcg@10")[0]) == 1.0


def test_a_counted_model_is_the_same_under_every_seed(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sigma", "seed=1,2,3"))
    write(tmp_path, expand(["experiment=yardsticks", "dataset=beauty", "model=markov"]))
    sigma, markov = models(frame([tmp_path]), "sigma", "markov")
    against = markov[NDCG].iloc[0]
    expected = stats.ttest_1samp(sigma[NDCG], against, alternative="greater").pvalue
    assert p_value(seed_differences(sigma, markov, NDCG)) == pytest.approx(expected)
    assert seed_differences(markov, sigma, NDCG) == pytest.approx(against - sigma[NDCG])
    assert user_differences(sigma, markov, "ndcg@10")[1] == 3


def test_a_seed_without_the_number_counts_for_nothing(tmp_path: Path) -> None:
    paths = write(tmp_path, beauty("model=sigma,sasrec", "seed=2020,2021,2022"))
    lacking = next(path for path in paths if path.name.startswith("sasrec-beauty-s2021"))
    row = json.loads((lacking / "row.json").read_text())
    row["metrics"]["test"]["ndcg@10"] = None
    (lacking / "row.json").write_text(json.dumps(row))
    sigma, sasrec = models(frame([tmp_path]).sort_values("seed"), "sigma", "sasrec")
    a, b = (rows[NDCG].iloc[[0, 2]] for rows in (sigma, sasrec))
    expected = stats.ttest_rel(a, b, alternative="greater").pvalue
    assert p_value(seed_differences(sigma, sasrec, NDCG)) == pytest.approx(expected)
    assert common(sigma, sasrec, NDCG).mean(axis=0) == pytest.approx([a.mean(), b.mean()])
    (paths[0] / "ranks.parquet").unlink()
    assert user_differences(*models(frame([tmp_path]), "sigma", "sasrec"), "ndcg@10")[1] == 2


def test_gains_among_unseen_items_by_hand(tmp_path: Path) -> None:
    """Places 1, 3 or 4, and 11; a run of before there were any has none, and no test."""
    ranks = pd.DataFrame({"greater": [9, 9, 9], "ties": [0, 0, 0]})
    assert gains(ranks, "unseen/ndcg@10").size == 0
    ranks = ranks.assign(unseen_greater=[0, 2, 10], unseen_ties=[0, 1, 0])
    expected = [1, (1 / math.log2(4) + 1 / math.log2(5)) / 2, 0]
    assert gains(ranks, "unseen/ndcg@10") == pytest.approx(expected)
    assert gains(ranks, "hr@10").tolist() == [1, 1, 1]
    write(tmp_path, beauty("model=sigma", "seed=1,2"))
    write(tmp_path, beauty("model=sasrec", "seed=1,2"), rankings=("",))
    sigma, sasrec = models(frame([tmp_path]).sort_values("seed"), "sigma", "sasrec")
    differences, n = user_differences(sigma, sigma[::-1], "unseen/hr@10")
    assert (len(differences), n) == (60, 2)
    assert user_differences(sigma, sasrec, "unseen/hr@10")[1] == 0
    assert user_differences(sigma, sasrec, "hr@10")[1] == 2
    assert not len(seed_differences(sigma, sasrec, "test/unseen/hr@10"))
