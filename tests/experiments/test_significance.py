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
from experiments.significance import common, gains, holm, mean_sd, over_seeds, over_users
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
    assert over_seeds(sigma, sasrec, NDCG) == (pytest.approx(expected), 4)
    users = [
        np.mean([gains(full_ranks(row), "ndcg@10") for row in rows.to_dict("records")], axis=0)
        for rows in (sigma, sasrec)
    ]
    difference, p, n = over_users(sigma, sasrec, "ndcg@10")
    assert (n, difference) == (4, pytest.approx(np.mean(users[0] - users[1])))
    assert p == pytest.approx(stats.ttest_rel(*users, alternative="greater").pvalue)
    assert over_seeds(sigma[:1], sasrec, NDCG) == (pytest.approx(math.nan, nan_ok=True), 1)
    assert over_seeds(sigma, sigma, NDCG)[0] == 1.0  # no difference at all is no improvement
    assert over_users(sigma, sigma, "ndcg@10")[1] == 1.0


def test_a_counted_model_is_the_same_under_every_seed(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sigma", "seed=1,2,3"))
    write(tmp_path, expand(["experiment=yardsticks", "dataset=beauty", "model=markov"]))
    sigma, markov = models(frame([tmp_path]), "sigma", "markov")
    against = markov[NDCG].iloc[0]
    expected = stats.ttest_1samp(sigma[NDCG], against, alternative="greater").pvalue
    assert over_seeds(sigma, markov, NDCG) == (pytest.approx(expected), 3)
    assert over_users(sigma, markov, "ndcg@10")[2] == 3


def test_a_seed_without_the_number_counts_for_nothing(tmp_path: Path) -> None:
    paths = write(tmp_path, beauty("model=sigma,sasrec", "seed=2020,2021,2022"))
    lacking = next(path for path in paths if path.name.startswith("sasrec-beauty-s2021"))
    row = json.loads((lacking / "row.json").read_text())
    row["metrics"]["test"]["ndcg@10"] = None
    (lacking / "row.json").write_text(json.dumps(row))
    sigma, sasrec = models(frame([tmp_path]).sort_values("seed"), "sigma", "sasrec")
    a, b = (rows[NDCG].iloc[[0, 2]] for rows in (sigma, sasrec))
    expected = stats.ttest_rel(a, b, alternative="greater").pvalue
    assert over_seeds(sigma, sasrec, NDCG) == (pytest.approx(expected), 2)
    assert common(sigma, sasrec, NDCG).mean(axis=0) == pytest.approx([a.mean(), b.mean()])
    (paths[0] / "ranks.parquet").unlink()
    assert over_users(*models(frame([tmp_path]), "sigma", "sasrec"), "ndcg@10")[2] == 2
