"""``train.py`` with W&B offline, on simulated data: what its files hold when read back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sigma.errors import UserError
from sigma.task import SequenceTask
from tests.callbacks.wandb_file import contents
from tests.in_process import call

SMALL = [
    "dataset=simulated",
    "dataset.shop.num_users=120",
    "dataset.shop.num_items=60",
    "model.hidden_size=8",
    "model.mamba.state_size=4",
    "logger=default",
]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def table(file: Path, summary: dict[str, Any], key: str) -> pd.DataFrame:
    assert summary[f"{key}._type"] == "table-file"
    content = json.loads((file.parent / "files" / summary[f"{key}.path"]).read_text())
    frame = pd.DataFrame(content["data"], columns=content["columns"])
    assert len(frame) == summary[f"{key}.nrows"]
    return frame


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def arguments(tmp_path: Path, *overrides: str) -> list[str]:
    return [*SMALL, f"dataset.root={tmp_path / 'data'}", *overrides]


def test_what_a_run_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    typed = ["trainer.max_epochs=3", "group=table4", "tags=[mine,sigma]", "model.r=2"]
    assert call(monkeypatch, *arguments(tmp_path, *typed, f"hydra.run.dir={folder}")) == 0
    (file,) = files(folder)
    found = contents(file)
    assert found["exit"] == 0
    record, config, summary = found["run"], found["config"], found["summary"]
    assert record.display_name == "sigma-simulated-s2020"
    assert (record.run_group, record.job_type) == ("table4", "sigma")
    assert list(record.tags) == ["mine", "sigma", "simulated"]
    for key, value in json.loads((folder / "config.json").read_text()).items():
        assert config[key] == value, key
    sizes = "dataset.shop.num_items=60 dataset.shop.num_users=120 model.hidden_size=8"
    assert config["variant"] == f"{sizes} model.mamba.state_size=4 model.r=2"

    curves = pd.DataFrame(found["history"]).groupby("epoch").first()
    kept = pd.read_csv(folder / "metrics.csv", index_col="epoch")
    assert curves.index.tolist() == [0, 1, 2]
    measured = [name for name in kept.columns if name != "step"]
    assert {"train/loss", "val/ndcg@10", *(f"val/{g}/hr@10" for g in ("short", "medium"))} <= set(
        measured
    )
    pd.testing.assert_frame_equal(curves[measured], kept[measured], check_index_type=False)

    row = json.loads((folder / "row.json").read_text())
    for name, value in row["metrics"]["test"].items():
        assert summary[f"test/{name}"] == value
    for name, value in row["metrics"]["val"].items():
        assert summary[f"best/val/{name}"] == pytest.approx(value)
    assert {"short/hr@10", "medium/ndcg@20", "mrr@5"} <= row["metrics"]["test"].keys()
    assert summary["best/epoch"] == row["best_epoch"]
    for name, value in row["efficiency"].items():
        assert summary[f"efficiency/{name}"] == value
    assert summary["efficiency/train_samples_per_second"] > 0
    assert summary["efficiency/parameters"] == row["parameters"]

    ranks = pd.read_parquet(folder / "ranks.parquet")
    lines = table(file, summary, "ranks/users_sample")
    assert lines["history_length"].tolist() == ranks["history_length"].tolist()
    assert lines["rank"].tolist() == (ranks["greater"] + 1 + ranks["ties"] / 2).tolist()
    for name in ("hr@10", "ndcg@10", "mrr@10"):
        assert lines[name].mean() == pytest.approx(summary[f"test/{name}"], abs=1e-6)
    short = lines["history_length"] < 5
    assert lines[short]["hr@10"].mean() == pytest.approx(summary["test/short/hr@10"], abs=1e-6)

    bins = table(file, summary, "ranks/by_history")
    assert bins["samples"].sum() == len(ranks)
    whole = np.average(bins["hr@10"], weights=bins["samples"])
    assert whole == pytest.approx(summary["test/hr@10"], abs=1e-6)
    # What is staged for the upload lies in the run's folder, too.
    assert list((folder / "wandb" / "artifacts").rglob("*"))


def test_jobs_of_a_multirun_end_and_a_resumed_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "sweep"
    common = [
        f"hydra.sweep.dir={sweep}",
        "hydra.sweep.subdir=s${seed}",
        "logger.wandb.id=sweep${seed}",
    ]
    typed = arguments(tmp_path, "seed=1,2", *common)
    assert call(monkeypatch, "-m", *typed, "trainer.max_epochs=1") == 0
    for seed in (1, 2):
        (file,) = files(sweep / f"s{seed}")
        found = contents(file)
        assert found["run"].run_id == f"sweep{seed}"
        assert found["exit"] == 0
        assert found["config"]["seed"] == seed
        assert found["summary"]["ranks/users_sample.nrows"] > 0
    first = contents(files(sweep / "s1")[0])

    # The first of them was stopped after an epoch, as far as what lies in its folder tells.
    (sweep / "s1" / "row.json").unlink()
    assert call(monkeypatch, "-m", *typed, "trainer.max_epochs=2", "resume=true") == 0
    assert len(files(sweep / "s2")) == 1  # it had ended
    before, after = map(contents, files(sweep / "s1"))
    assert before["run"].run_id == after["run"].run_id == "sweep1"
    assert after["exit"] == 0
    epochs = {line["epoch"] for line in after["history"] if "train/loss" in line}
    assert epochs == {1}
    row = json.loads((sweep / "s1" / "row.json").read_text())
    assert after["summary"]["best/val/ndcg@10"] == row["metrics"]["val"]["ndcg@10"]
    assert row["metrics"]["val"]["ndcg@10"] >= first["summary"]["best/val/ndcg@10"]
    assert after["summary"]["efficiency/sessions"] == 2


def test_a_job_that_fails_is_closed_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [UserError("the second epoch cannot start")]  # of the first job alone

    def broken(task: SequenceTask) -> None:
        if task.trainer.current_epoch == 1 and errors:
            raise errors.pop()

    monkeypatch.setattr(SequenceTask, "on_train_epoch_start", broken)
    common = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir=r${model.r}"]
    typed = arguments(tmp_path, *common, "model.r=2,3", "trainer.max_epochs=2")
    assert call(monkeypatch, "-m", *typed) == 1
    failed, whole = (contents(files(tmp_path / "sweep" / name)[0]) for name in ("r2", "r3"))
    assert (failed["exit"], whole["exit"]) == (1, 0)
    assert failed["summary"]["epoch"] == 0
    assert not any(name.startswith(("test/", "ranks/")) for name in failed["summary"])
    assert "test/ndcg@10" in whole["summary"]


def test_sampled_ranks_are_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    typed = ["trainer.max_epochs=1", "evaluation=sampled", "evaluation.sampled.number=15"]
    assert call(monkeypatch, *arguments(tmp_path, *typed, f"hydra.run.dir={folder}")) == 0
    (file,) = files(folder)
    summary = contents(file)["summary"]
    lines = table(file, summary, "ranks/users_sample")
    assert lines["sampled_hr@10"].mean() == pytest.approx(summary["test/sampled_hr@10"], abs=1e-6)
    bins = table(file, summary, "ranks/by_history")
    named = [*lines.columns, *bins.columns]
    assert all("sampled_" in name for name in named if "rank" in name or "@" in name)
