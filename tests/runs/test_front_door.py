"""``python train.py`` as its user sees it: what is printed, and what lies in the folder."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest

from sigma.runs.files import CONFIG, CURVES, EPOCHS, RANKS, ROW
from tests.callbacks.fake_wandb import Service, service
from tests.in_process import arguments, call
from tests.runs.front_door import ROOT, Capture, Patch, command, environment, row

__all__ = ["service"]


@pytest.mark.slow
def test_a_run_shows_and_writes_everything(data: Path, tmp_path: Path) -> None:
    typed = command(tmp_path, data, "trainer.max_epochs=2", "logger=default", "group=g")
    options = {"cwd": ROOT, "env": environment(), "timeout": 120}
    process = subprocess.run(typed, text=True, capture_output=True, **options)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""  # no warning of any library
    output = process.stdout
    for part in ("Selective scan: ", "popularity", f"Result row: {tmp_path / ROW}"):
        assert part in output
    assert len([line for line in output.splitlines() if line.startswith("epoch ")]) == 2
    table = pd.read_csv(tmp_path / EPOCHS)
    assert table["epoch"].tolist() == [0, 1]
    assert row(tmp_path)["metrics"]["val"]["ndcg@10"] == pytest.approx(table["val/ndcg@10"].max())
    assert (tmp_path / CURVES).stat().st_size > 10_000


def test_a_development_run_writes_nothing(
    data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    typed = arguments(tmp_path, data, "trainer.fast_dev_run=true", "logger=default")
    assert call(monkeypatch, *typed) == 0
    assert {p.name for p in tmp_path.iterdir()} <= {".hydra", "train.log", CONFIG}


def test_a_multirun_is_as_many_runs(
    data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture, service: Service
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    typed = arguments(tmp_path / "unused", data, "trainer.max_epochs=1", "seed=1,-5,2")
    typed.append("logger=default")
    assert call(monkeypatch, "-m", *typed, f"hydra.sweep.dir={tmp_path}") == 1
    captured = capsys.readouterr()
    assert "error: This job failed: seed=-5 must be" in captured.out
    assert "error: seed=-5 must be" in captured.err
    assert sorted(row(path.parent)["seed"] for path in tmp_path.glob(f"*/{ROW}")) == [1, 2]
    runs = [(run.options["name"], run.exit_code) for run in service.runs]
    assert runs == [("sigma-custom-s1", 0), ("sigma-custom-s2", 0)]


def test_help_lists_groups_and_examples(monkeypatch: Patch, capsys: Capture) -> None:
    assert call(monkeypatch, "--help") == 0
    output = capsys.readouterr().out
    for group in ("callbacks", "dataset", "logger", "loss", "model", "objective", "trainer"):
        assert f"\n{group}: " in output
    for word in ("ml_100k", "resume=", "dataset.path=", "fast_dev_run", "--cfg job"):
        assert word in output


@pytest.mark.slow
def test_what_observes_changes_no_number(data: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    everything = ["trainer.max_epochs=2", "logger=default", "+trainer.profiler=simple"]
    little = ["trainer.max_epochs=2", "logger=none", "~callbacks.progress", "callbacks.curves=null"]
    little += ["~callbacks.tables", "+logger.csv=null"]  # null is as good as ~
    rows = []
    for name, typed in (("everything", everything), ("little", little)):
        assert call(monkeypatch, *arguments(tmp_path / name, data, *typed)) == 0
        rows.append(row(tmp_path / name)["metrics"])
    assert rows[0] == rows[1]


def test_sampled_evaluation_is_called_so_wherever_it_is_shown(
    data: Path, tmp_path: Path, monkeypatch: Patch, capfd: Capture
) -> None:
    negatives = ["evaluation.sampled.number=15", "evaluation.sampled.distribution=popularity"]
    typed = arguments(tmp_path, data, "trainer.max_epochs=2", "evaluation=sampled", *negatives)
    assert call(monkeypatch, *typed) == 0
    output = "".join(capfd.readouterr())
    content = row(tmp_path)
    assert content["evaluation"] == "15 popularity negatives"
    header = (tmp_path / EPOCHS).read_text().splitlines()[0].split(",")
    names = [*content["metrics"]["val"], *content["metrics"]["test"], *header]
    metrics = [name for name in names if "@" in name]
    assert len(metrics) > 40
    assert all("sampled_" in name for name in metrics)
    assert "val/sampled_ndcg@10" in output
    assert " val/ndcg@10" not in output
    assert "popularity ranking" not in output  # that is of full ranking
    frame = pd.read_parquet(tmp_path / RANKS)
    assert frame["sampled_greater"].max() <= 15
    assert "greater" not in frame
    # Resuming what has ended gives the score it was chosen by; another protocol is another run.
    assert call(monkeypatch, *typed, "resume=true") == 0
    full = [word for word in typed if not word.startswith("evaluation")]
    assert call(monkeypatch, *full, "resume=true") == 1
    assert "was started with another dataset.mask_history" in capfd.readouterr().err
