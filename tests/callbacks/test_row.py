"""The result row and metrics.csv: what was done, not only what was asked for."""

import json
from pathlib import Path

import pandas as pd
import pytest

from sigma.runs.files import EPOCHS, RANKS, ROW
from sigma.runs.row import Row
from tests.in_process import arguments, call
from tests.runs.front_door import write_sequences


@pytest.mark.filterwarnings("ignore:.*fp16 is not supported on CPU")
def test_a_row_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU Lightning takes bf16-mixed where 16-mixed is asked for."""
    data = write_sequences(tmp_path / "tiny.txt")
    typed = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.precision=16-mixed"]
    typed += ["callbacks.row.search={trials:7,trial:2}"]
    folder = tmp_path / "run"
    assert call(monkeypatch, *arguments(folder, data, *typed)) == 0
    row = Row.read(folder / ROW)
    assert row.precision == "bf16-mixed"
    assert row.config["trainer"]["precision"] == "16-mixed"
    assert row.config["trainer"]["default_root_dir"] == "."
    assert row.search == {"trials": 7, "trial": 2}
    assert row.content() == json.loads((folder / ROW).read_text())
    epochs = pd.read_csv(folder / EPOCHS)
    assert epochs["epoch"].tolist() == [0, 1]
    assert row.best_epoch in (0, 1)
    best = epochs.iloc[row.best_epoch]
    assert {f"val/{name}" for name in row.metrics.val} == {n for n in epochs if n[:4] == "val/"}
    assert row.metrics.val == {n[4:]: pytest.approx(best[n]) for n in epochs if n[:4] == "val/"}
    for name in ("unseen/ndcg@10", "unseen/coverage@10", "novelty@5", "head@20"):
        assert name in row.metrics.test
    ranks = pd.read_parquet(folder / RANKS)
    for prefix in ("", "unseen_"):
        hit = (ranks[f"{prefix}greater"] < 10) & (ranks[f"{prefix}ties"] == 0)
        assert hit.mean() == pytest.approx(row.metrics.test[f"{prefix.replace('_', '/')}hr@10"])
    # A run of an earlier version that left seen items out had no other ranking.
    content = row.content()
    content["config"]["dataset"]["mask_history"] = True
    older = Row.parse(content)
    assert older.metrics.val["unseen/hr@10"] == row.metrics.val["hr@10"]
    assert "hr@10" not in older.metrics.val
