"""Means, deviations and tests, held against SciPy and hand-computed cases."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.grid import expand
from experiments.ledger import read
from experiments.lines import lines, model_label, on_common_seeds
from experiments.significance import holm, mean_sd, over_seeds, over_users
from tests.experiments.rows import write

BEAUTY = ("experiment=table2_overall", "dataset=beauty")


def test_mean_and_deviation_by_hand() -> None:
    assert mean_sd([1.0, 2.0, 3.0, None]) == (2.0, 1.0, 3)
    assert mean_sd([2.0]) == (2.0, None, 1)
    assert mean_sd([None]) == (None, None, 0)


def test_holm_by_hand() -> None:
    # 0.01 × 3, 0.02 × 2, then 0.03 × 1, which may not fall below the one before.
    assert holm([0.03, None, 0.01, 0.02]) == [pytest.approx(0.04), None, 0.03, 0.04]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_paired_tests_are_scipys(tmp_path: Path) -> None:
    write(tmp_path, expand([*BEAUTY, "model=sigma,sasrec", "seed=1,2,3,4"]))
    ledger = read([tmp_path])
    sigma = [row for row in ledger.rows if row.model == "sigma"]
    sasrec = [row for row in ledger.rows if row.model == "sasrec"]
    a, b = ([row.metric("test", "ndcg@10") for row in rows] for rows in (sigma, sasrec))
    p, n = over_seeds(sigma, sasrec, "ndcg@10")
    assert n == 4
    assert p == pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue)
    users = [np.mean([row.per_user("ndcg@10") for row in rows], axis=0) for rows in (sigma, sasrec)]
    difference, p, n = over_users(sigma, sasrec, "ndcg@10")
    assert (n, difference) == (4, pytest.approx(np.mean(users[0] - users[1])))
    assert p == pytest.approx(stats.ttest_rel(*users, alternative="greater").pvalue)
    assert over_seeds(sigma[:1], sasrec, "ndcg@10") == (None, 1)
    assert over_seeds(sigma, sigma, "ndcg@10")[0] == 1.0  # no difference at all is no improvement
    assert over_users(sigma, sigma, "ndcg@10")[1] == 1.0


def test_a_counted_model_is_the_same_under_every_seed(tmp_path: Path) -> None:
    write(tmp_path, expand([*BEAUTY, "model=sigma", "seed=1,2,3"]))
    write(tmp_path, expand(["experiment=yardsticks", "dataset=beauty", "model=markov"]))
    rows = read([tmp_path]).rows
    sigma = [row for row in rows if row.model == "sigma"]
    (markov,) = (row for row in rows if row.counted)
    against = markov.metric("test", "ndcg@10")
    ours = [row.metric("test", "ndcg@10") for row in sigma]
    p, n = over_seeds(sigma, [markov], "ndcg@10")
    assert n == 3
    assert p == pytest.approx(stats.ttest_1samp(ours, against, alternative="greater").pvalue)
    assert over_users(sigma, [markov], "ndcg@10")[2] == 3


def test_a_seed_without_the_number_counts_for_nothing(tmp_path: Path) -> None:
    paths = write(tmp_path, expand([*BEAUTY, "model=sigma,sasrec", "seed=2020,2021,2022"]))
    lacking = next(path for path in paths if path.name.startswith("sasrec-beauty-s2021"))
    row = json.loads(lacking.read_text())
    row["metrics"]["test"]["ndcg@10"] = None
    lacking.write_text(json.dumps(row))
    ledger = read([tmp_path])
    sigma, sasrec = (
        next(line for line in lines(ledger, model_label, *BEAUTY) if line.label == name)
        for name in ("sigma", "sasrec")
    )
    a, b = ([line.rows[at].metric("test", "ndcg@10") for at in (0, 2)] for line in (sigma, sasrec))
    p, n = over_seeds(sigma.rows, sasrec.rows, "ndcg@10")
    assert (p, n) == (pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue), 2)
    assert on_common_seeds(sigma, sasrec, "test", "ndcg@10") == pytest.approx(
        (np.mean(a), np.mean(b))
    )
