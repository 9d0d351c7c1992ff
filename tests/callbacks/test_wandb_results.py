"""The tables of ranks, against an enumeration of every order of ties."""

import math

import pandas as pd
import pytest

from sigma.callbacks.wandb_results import by_history, sample, tables, user_lines


def ranks() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user": list("abcde"),
            "target": list("vwxyz"),
            "history_length": [2, 3, 4, 5, 120],
            "greater": [0, 8, 9, 2000, 3],
            "ties": [0, 3, 1, 0, 1],
        }
    )


def test_a_line_is_the_mean_over_the_orders_of_ties() -> None:
    lines = user_lines(ranks())
    assert list(lines.columns) == [
        "line", "history_length", "rank", "ties", "hr@10", "ndcg@10", "mrr@10"
    ]  # fmt: skip
    for given, line in zip(ranks().itertuples(), lines.to_dict("records"), strict=True):
        possible = range(given.greater + 1, given.greater + given.ties + 2)
        top = [rank for rank in possible if rank <= 10]
        assert line["rank"] == pytest.approx(sum(possible) / len(possible))
        assert line["hr@10"] == pytest.approx(len(top) / len(possible))
        ndcg = sum(1 / math.log2(rank + 1) for rank in top) / len(possible)
        assert line["ndcg@10"] == pytest.approx(ndcg)
        assert line["mrr@10"] == pytest.approx(sum(1 / rank for rank in top) / len(possible))


def test_bins_hold_everyone_once() -> None:
    table = by_history(ranks()).set_index("history_length")
    assert table.index.tolist() == ["0-2", "3-4", "5-9", "100-"]
    assert table["samples"].tolist() == [1, 2, 1, 1]
    spread = table[[name for name in table.columns if name.startswith("rank ")]]
    assert spread.sum(axis=1).tolist() == pytest.approx([1, 2, 1, 1])
    # 9 … 12 and 10, 11: half of the first and half of the second within the first ten.
    assert spread.loc["3-4"]["rank 6-10"] == pytest.approx(1)
    assert spread.loc["3-4"]["rank 11-20"] == pytest.approx(1)
    assert spread.loc["0-2"]["rank 1"] == 1
    assert spread.loc["5-9"]["rank 1001-"] == 1
    assert spread.loc["100-"]["rank 2-5"] == 1
    assert table.loc["3-4"]["median_rank"] == 10.5
    assert table.loc["3-4"]["hr@10"] == 0.5


def test_the_sample_is_even_and_capped() -> None:
    many = pd.concat([ranks()] * 5000, ignore_index=True)
    found = tables(many)
    lines = found["ranks/users_sample"]
    assert len(lines) == 10_000
    steps = lines["line"].diff().dropna()
    assert set(steps) <= {2, 3}
    assert lines["line"].iloc[[0, -1]].tolist() == [0, 24_999]
    assert found["ranks/by_history"]["samples"].sum() == 25_000
    assert sample(user_lines(ranks()))["line"].tolist() == [0, 1, 2, 3, 4]
