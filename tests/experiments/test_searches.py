"""The report's tables of searches and of SIGMA's parts, from rows made here."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from experiments.grid import Job, expand
from experiments.report import build, searches, variants
from experiments.rows import MixedProtocolError, frame
from tests.experiments.rows import content, write

ALL, UNSEEN = "val/ndcg@10", "val/unseen/ndcg@10"


def add(folder: Path, job: Job, scores: dict[str, float], **changes: Any) -> None:
    """A row with these validation scores, and tests that are half of them."""
    row = content(job)
    for name, value in scores.items():
        row["metrics"]["val"][name] = value
        row["metrics"]["test"][name] = value / 2
    write(folder, [job], metrics=row["metrics"], **changes)


def trial(folder: Path, number: int, asked: int, value: float, *words: str) -> None:
    """A trial of SASRec among unseen items by default, with ``value`` as its score."""
    (job,) = expand(["model=sasrec", "dataset=beauty", f"evaluation.monitor={UNSEEN}", *words])
    scores = {"unseen/ndcg@10": value, "ndcg@10": 1 - value}
    add(folder, job, scores, search={"trials": asked, "trial": number}, epochs=7)


@pytest.fixture
def searched(tmp_path: Path) -> pd.DataFrame:
    """Trials 1 and 2 of five were pruned; the search was begun with a budget of three."""
    trial(tmp_path, 0, 3, 0.2, "task.optimizer.lr=0.004")
    trial(tmp_path, 3, 5, 0.3, "task.optimizer.lr=0.002", "model.hidden_size=128")
    trial(tmp_path, 4, 5, 0.25, "task.optimizer.lr=0.001", "objective=all_positions")
    trial(tmp_path, 0, 5, 0.1, "model=gru4rec")
    trial(tmp_path, 1, 5, 0.4, f"evaluation.monitor={ALL}", "model.dropout=0.5")
    return frame([tmp_path])


def test_what_won_each_search(searched: pd.DataFrame) -> None:
    (table,) = searches.budgets(searched)
    lines = table.frame.set_index(["chosen by", "model"])
    assert lines.index.tolist() == [(ALL, "sasrec"), (UNSEEN, "gru4rec"), (UNSEEN, "sasrec")]
    best = lines.loc[(UNSEEN, "sasrec")]
    assert best[["trials asked", "trials with a row", "epochs"]].tolist() == [5, 3, 21]
    assert best["validation"] == 0.3
    assert best["test unseen/ndcg@10"] == 0.15
    assert best["test ndcg@10"] == 0.35
    assert best["settings"] == "lr=0.002, objective=NextItem, hidden_size=128"
    assert lines.loc[(ALL, "sasrec"), "validation"] == 0.6  # by its own metric, not the other
    assert table.markdown()


def test_the_best_so_far_stays_over_pruned_trials(searched: pd.DataFrame) -> None:
    curves = searches.progress(searched).set_index(["metric", "model"])
    sasrec = curves.loc[(UNSEEN, "sasrec")]
    assert sasrec["trial"].tolist() == [1, 2, 3, 4, 5]
    assert sasrec["value"].tolist() == [0.2, 0.2, 0.2, 0.3, 0.3]
    later = curves.loc[(ALL, "sasrec")]  # its first trial was pruned
    assert later["trial"].tolist() == [2, 3, 4, 5]


def test_searches_of_other_budgets_are_not_compared(tmp_path: Path) -> None:
    trial(tmp_path, 0, 5, 0.2)
    trial(tmp_path, 0, 6, 0.2, "model=gru4rec")
    with pytest.raises(MixedProtocolError, match="tuning trials"):
        searches.budgets(frame([tmp_path]))


def test_nothing_was_searched(tmp_path: Path) -> None:
    rows = frame([tmp_path])
    assert searches.budgets(rows) == []
    assert searches.pictures(rows, tmp_path) == {}
    assert variants.tables(rows, ["beauty"]) == []


@pytest.mark.slow
def test_which_part_helps_under_which_ranking(tmp_path: Path) -> None:
    """Without its gate SIGMA is worse among all items; without its flip better among unseen."""
    words = ["experiment=parts", "seed=2020,2021,2022", "model.shortcut=projected"]
    for job in expand(words):
        label, seed = variants.variant(job), job.seed - 2019
        loss = {"whole": 0.0, "no gate": -0.1, "no flip": 0.1, "no gru": 0.0}[label]
        unseen = job.config["evaluation"]["monitor"] == UNSEEN
        moves = (label == "no flip") if unseen else (label == "no gate")
        jitter = 0.001 * seed * (1 if label == "whole" else 1.5)
        score = 0.5 + jitter + loss * moves + (0.002 * (seed - 2) if label == "no gru" else 0)
        add(tmp_path, job, {"ndcg@10": score, "unseen/ndcg@10": score})
    rows = frame([tmp_path])
    every, unseen = variants.tables(rows, ["beauty", "ml_1m"])
    assert [every.name, unseen.name] == ["parts_beauty_ndcg10", "parts_beauty_unseen_ndcg10"]
    verdicts = every.frame.set_index("setting")["by seeds"]
    assert verdicts.tolist() == ["–", "no difference", "worse", "no difference"]
    assert unseen.frame.set_index("setting")["by seeds"]["no flip"] == "better"
    assert every.frame["seeds"].tolist() == ["3 of 5"] * 4
    line = every.frame.set_index("setting").loc["no gate"]
    assert line["difference test"] == pytest.approx(0.403 / 0.502 - 1, abs=1e-3)
    assert any("model.shortcut=identity" in command for command in every.missing)
    assert all("evaluation.monitor=val/ndcg@10" in command for command in every.missing)


def test_both_stand_in_the_report(searched: pd.DataFrame, tmp_path: Path) -> None:
    build(tmp_path / "report", searched)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Every model searched alike: beauty" in text
    assert (tmp_path / "report" / "figures" / "searches_beauty.svg").stat().st_size > 1000
