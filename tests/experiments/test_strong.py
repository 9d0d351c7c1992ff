"""Models by their own recipes beside what was published of them."""

from pathlib import Path

import pytest

from experiments.grid import Job, expand
from experiments.paper.values import lookup
from experiments.report.strong import strong
from experiments.rows import MixedProtocolError, frame
from tests.experiments.rows import beauty, write

MODELS = ("sasrec_tuned", "esasrec", "hstu_time")
UNSEEN = "evaluation.monitor=val/unseen/ndcg@10"


def recipes(*words: str) -> list[Job]:
    return expand(["experiment=strong", "dataset=beauty", *words])


def test_ours_stand_beside_what_was_published(tmp_path: Path) -> None:
    write(tmp_path, recipes("model=sasrec_tuned,esasrec,hstu_time", "seed=2020,2021"))
    write(tmp_path, beauty("model=sigma", "seed=2020", UNSEEN))
    write(tmp_path, beauty("model=sasrec", "seed=2020"))  # chosen among all items
    rows = frame([tmp_path])
    tables = {table.name: table for table in strong(rows, "beauty", *MODELS)}
    table = tables["strong_beauty_test"]
    lines = table.frame.set_index("model")
    assert lines.index.tolist() == [*MODELS[:2], "hstu_time (knows the target's time)"]
    assert lines["rows up to"].tolist()[:2] == [128, 50]
    assert lines["best epoch by"].tolist()[:2] == ["val/unseen/ndcg@10", "val/unseen/hr@10"]
    for model in ("sasrec_tuned", "esasrec"):
        misses = []
        for metric in ("hr@10", "ndcg@10", "mrr@10"):
            ours = rows.loc[rows["model"] == model, f"test/unseen/{metric}"].mean()
            theirs = lookup("published", metric, dataset="beauty", model=model, split="test")
            difference = lines.loc[model, f"{metric.upper()}, difference"]
            assert difference == pytest.approx(ours / theirs - 1, nan_ok=True)
            misses += [metric.upper()] * bool(difference < -0.03)
        assert lines.loc[model, "misses"] == (", ".join(misses) or "none")
    assert lines.loc["sasrec_tuned", "HR@10, published"] == 0.0974
    assert "# 9 of 15 runs are missing" in table.missing[0]
    both = tables["strong_beauty_rankings_test"].frame["model"].tolist()
    assert both == [*lines.index, "sigma"]
    valid = tables["strong_beauty_validation"].frame.set_index("model")
    assert valid["NDCG@10, published"].notna().tolist() == [True, False, False]


def test_recipes_may_differ_and_a_departure_from_one_may_not(tmp_path: Path) -> None:
    write(tmp_path, recipes("model=sasrec_tuned,esasrec", "seed=2020"))
    write(tmp_path, recipes("model=sasrec_tuned", "seed=2021", "dataset.max_length=20"))
    with pytest.raises(MixedProtocolError, match=r"max_length is its recipe's .*20"):
        strong(frame([tmp_path]), "beauty", *MODELS)


def test_without_a_row_there_is_no_table(tmp_path: Path) -> None:
    write(tmp_path, beauty("model=sasrec", "seed=2020"))
    assert strong(frame([tmp_path]), "beauty") == []
