"""Both rankings side by side, from rows of now and of before there were both."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.grid import expand
from experiments.report.lines import Line, lines
from experiments.report.page import Table
from experiments.report.rankings import again, places, selected, verdict, verdicts
from experiments.report.tables import COMPARISONS, both
from experiments.rows import frame, label
from tests.experiments.rows import BEAUTY, REPEATS, USERS, beauty, write

MARKOV = ["experiment=yardsticks", "dataset=beauty", "model=markov"]


def tables(rows: pd.DataFrame, models: str) -> dict[str, Table]:
    compared = lines(rows, *BEAUTY, f"model={models}")
    if "markov" in set(rows["model"]):
        compared += lines(rows, *MARKOV)
    shown = both(COMPARISONS["table2_overall"], compared, "beauty")
    return {table.name.removeprefix("table2_beauty_"): table for table in shown}


def test_places_and_arrows_by_hand() -> None:
    """The third line has one ranking, so it moves no other."""
    (job,) = beauty("model=sigma", "seed=1")
    values = [(0.4, 0.1), (0.3, 0.5), (0.2, None), (0.1, 0.3)]
    names = ["test/ndcg@10", "test/unseen/ndcg@10"]
    compared = [Line("", job, (1,), pd.DataFrame([pair], columns=names)) for pair in values]
    order = places(compared, "test")
    assert order["all items"] == ["1", "2", "3", "4"]
    assert order["unseen items"] == ["3 ↓2", "1 ↑1", "–", "2 ↑1"]


def test_an_older_row_has_dashes_and_the_command_that_ranks_it_again(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sigma", "seed=2020,2021"))
    (older,) = write(tmp_path, beauty("model=sasrec", "seed=2021"), rankings=("",))
    rows = frame([tmp_path])
    shown = tables(rows, "sigma,sasrec")
    for split, prefix in (("test", "test"), ("validation", "val")):
        table = shown[f"rankings_{split}"]
        texts = table.texts.set_index("model")
        sigma = rows[rows["model"] == "sigma"]
        for ranking, start in {"all": "", "unseen": "unseen/"}.items():
            mean = sigma[f"{prefix}/{start}hr@10"].mean()
            assert texts.loc["sigma", f"HR@10, {ranking}"].startswith(f"{mean:.4f}"[1:] + " ± ")
        unseen = ["HR@10, unseen", "NDCG@10, unseen", "MRR@10, unseen", "place, unseen"]
        assert texts.loc["sasrec", unseen].tolist() == ["–"] * 4
        assert texts.loc["sasrec", ["seeds", "seeds, unseen"]].tolist() == ["1 of 5", "0 of 5"]
        number = REPEATS[f"{prefix}_repeats"]
        (note,) = table.notes
        assert note.startswith(f"{number} of {USERS} targets are in their own history")
    compared = lines(rows, *BEAUTY, "model=sigma,sasrec")
    (command,) = again(BEAUTY, "model", compared, compared)
    assert command.endswith("# 1 of 10 runs were ranked among all items alone")
    (job,) = expand(command.partition("#")[0].split()[3:])
    assert job.run_id == older.name
    assert shown["beyond"].texts.set_index("model").loc["sasrec"].iloc[:-1].eq("–").all()
    assert set(shown["beyond"].texts.set_index("model").loc["sigma"].iloc[:-1]) == {".5000 ± .0000"}


def test_runs_chosen_under_another_ranking_are_in_no_column(tmp_path: Path) -> None:
    (plain,) = beauty("model=sigma", "seed=2020")
    (unseen,) = beauty("model=sigma", "seed=2021", "evaluation.monitor=val/unseen/ndcg@10")
    (counted,) = expand(MARKOV)
    write(tmp_path, [plain, unseen, counted])
    rows = frame([tmp_path])
    assert sorted(selected(rows)["run_id"]) == sorted([counted.run_id, plain.run_id])
    assert sorted(selected(rows, unseen=True)["run_id"]) == [counted.run_id, unseen.run_id]


def test_the_best_of_each_ranking_and_sigma_are_tested_against_all(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sigma,sasrec,echo", "seed=2020,2021,2022"))
    write(tmp_path, expand(MARKOV))
    rows = frame([tmp_path]).sort_values("seed")
    table = tables(rows, "sigma,sasrec,echo")["tests"].frame.set_index(["among", "model"])
    trained = rows[~rows["counted"].astype(bool)]
    for ranking, start in {"all items": "", "unseen items": "unseen/"}.items():
        metric = f"test/{start}ndcg@10"
        best = trained.groupby("model")[metric].mean().idxmax()
        assert {"sigma", best} <= set(table.loc[ranking].index)
        others = table.loc[ranking].loc["sigma"].set_index("against")
        assert sorted(others.index) == ["echo", "markov", "sasrec"]
        a, b = (rows.loc[rows["model"] == name, metric] for name in ("sigma", "sasrec"))
        expected = stats.ttest_rel(a, b, alternative="greater").pvalue
        assert others.loc["sasrec", "p over seeds"] == pytest.approx(expected)
        improvement = a.mean() / b.mean() - 1
        assert others.loc["sasrec", "improvement"] == pytest.approx(improvement)
        assert others.loc["sasrec", "difference per user"] == pytest.approx(a.mean() - b.mean())


def test_verdicts_by_hand() -> None:
    far, near = np.array([1.0, 1.1, 0.9]), np.array([1.0, -1.1, 0.2])
    frame = verdicts([(far, -far), (-far, near), (far[:1], far[:0])])
    assert frame["by seeds"].tolist() == ["better", "worse", "–"]
    assert frame["by users"].tolist() == ["worse", "no difference", "–"]
    single = stats.ttest_1samp(far, 0, alternative="greater").pvalue
    assert frame["p over seeds, corrected"].tolist()[:1] == [pytest.approx(2 * single)]
    assert [verdict(0.04, 0.9), verdict(0.9, 0.04)] == ["better", "worse"]


def test_who_reads_the_targets_time_says_so() -> None:
    rows = frame()
    told = rows["model"] == "hstu_time"
    names = rows["model"].mask(told, "hstu_time (knows the target's time)")
    assert rows["label"].tolist() == names.tolist()
    (job,) = expand(["model=hstu_time", "dataset=beauty"])
    assert label(job.config) == "hstu_time (knows the target's time)"
    (job,) = expand(["model=hstu", "model.time=history", "dataset=beauty"])
    assert label(job.config) == "hstu"
