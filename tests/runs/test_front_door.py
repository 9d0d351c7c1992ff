"""``python train.py`` as its user sees it: what is printed, and what lies in the folder."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from tests.callbacks.fake_wandb import Service, service
from tests.in_process import arguments, call
from tests.runs.front_door import ROOT, command, environment, write_sequences

__all__ = ["service"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequences(tmp_path_factory.mktemp("data") / "tiny.txt", users=60, items=30)


def test_a_run_shows_and_keeps_everything(data: Path, tmp_path: Path) -> None:
    typed = command(tmp_path, data, "trainer.max_epochs=2", "logger=default", "group=g")
    done = subprocess.run(
        typed, cwd=ROOT, env=environment(), text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning of any library
    lines = done.stdout.splitlines()
    assert any(line.startswith("| users | items | interactions |") for line in lines)
    assert any("Selective scan: " in line for line in lines)
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 2
    assert all("loss " in line and "val/ndcg@10 " in line for line in epochs)
    assert "samples/s" in epochs[0]
    assert "left" in epochs[0]
    assert any(line.startswith("| overall |") for line in lines)
    assert any(line.startswith("| medium  |") for line in lines)
    assert "popularity ranking 0." in done.stdout
    assert f"Result row: {tmp_path / 'row.json'}" in lines
    assert f"Upload to W&B: wandb sync {tmp_path}" in done.stdout
    row = json.loads((tmp_path / "row.json").read_text())
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["epoch"].tolist() == [0, 1]
    best = row["metrics"]["val"]["ndcg@10"]
    assert best == pytest.approx(table["val/ndcg@10"].max())
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert path.stat().st_size > 10_000


def test_a_development_run_says_what_it_did_and_writes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = arguments(tmp_path, data, "trainer.fast_dev_run=true", "logger=default")
    assert call(monkeypatch, *typed) == 0
    assert "Development run: 1 batch(es)" in capsys.readouterr().out
    kept = {p.name for p in tmp_path.iterdir()}
    assert kept <= {".hydra", "train.log", "config.json"}


def test_a_multirun_is_as_many_runs(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    service: Service,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    typed = arguments(tmp_path / "unused", data, "trainer.max_epochs=1", "logger=default")
    sweep = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "seed=1,-5,2"]
    assert call(monkeypatch, "-m", *typed, *sweep) == 1
    shown = capsys.readouterr()
    assert "error: This job failed: seed=-5 must be" in shown.out
    assert "error: seed=-5 must be" in shown.err
    rows = sorted((tmp_path / "sweep").glob("*/row.json"))
    assert [json.loads(row.read_text())["seed"] for row in rows] == [1, 2]
    names = [(run.options["name"], run.options["config"]["seed"]) for run in service.runs]
    assert names == [("sigma-custom-s1", 1), ("sigma-custom-s2", 2)]
    assert all(run.exit_code == 0 for run in service.runs)


@pytest.mark.parametrize("logger", ["none", "tensorboard"])
def test_other_loggers(
    logger: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if logger == "tensorboard":
        pytest.importorskip("tensorboard")
    typed = arguments(tmp_path, data, "trainer.max_epochs=1", f"logger={logger}")
    assert call(monkeypatch, *typed, "+trainer.profiler=simple") == 0
    assert "FIT Profiler Report" in capsys.readouterr().out
    assert (tmp_path / "row.json").exists()
    assert (tmp_path / "metrics.csv").exists()
    assert bool(list(tmp_path.glob("tensorboard/events*"))) == (logger == "tensorboard")


def test_a_job_that_changes_into_its_folder_says_where_paths_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = arguments(tmp_path, Path("shop.txt"), "hydra.job.chdir=true")
    assert call(monkeypatch, *typed) == 1
    shown = capsys.readouterr()
    assert f"relative paths start from the run's folder, {tmp_path}; " in shown.out
    assert "dataset.path=shop.txt" in shown.out
    assert "shop.txt does not exist" in shown.err


def test_help_lists_groups_and_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    for group in (
        "callbacks",
        "dataset",
        "evaluation",
        "logger",
        "loss",
        "model",
        "objective",
        "trainer",
    ):
        assert f"\n{group}: " in shown
    for word in (
        "ml_100k",
        "resume=",
        "dataset.path=",
        "fast_dev_run",
        "-m model=sigma,sasrec",
        "--cfg job",
    ):
        assert word in shown


def test_what_observes_changes_no_number(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    everything = ["trainer.max_epochs=2", "logger=default"]
    little = ["trainer.max_epochs=2", "logger=none", "~callbacks.progress", "callbacks.curves=null"]
    little += ["~callbacks.tables", "+logger.csv=null"]  # null is as good as ~
    rows = []
    for name, typed in (("everything", everything), ("little", little)):
        assert call(monkeypatch, *arguments(tmp_path / name, data, *typed)) == 0
        rows.append(json.loads((tmp_path / name / "row.json").read_text())["metrics"])
    assert rows[0] == rows[1]


def test_sampled_evaluation_is_called_so_wherever_it_is_shown(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    service: Service,
) -> None:
    typed = arguments(
        tmp_path, data, "trainer.max_epochs=2", "evaluation=sampled", "logger=default",
        "evaluation.sampled.number=15", "evaluation.sampled.distribution=popularity",
    )  # fmt: skip
    assert call(monkeypatch, *typed) == 0
    captured = capfd.readouterr()
    shown = captured.out + captured.err
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["evaluation"] == "15 popularity negatives"
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    names = [*row["metrics"]["val"], *row["metrics"]["test"], *header]
    (run,) = service.runs
    names += [*run.summary, *(name for line in run.history for name in line)]
    names += [*run.table("ranks/users_sample"), *run.table("ranks/by_history")]
    metrics = [name for name in names if "@" in name]
    assert len(metrics) > 40
    assert all("sampled_" in name for name in metrics)
    assert "val/sampled_ndcg@10" in shown
    assert " val/ndcg@10" not in shown
    assert "sampled evaluation: 15 negatives a target" in shown
    assert "popularity ranking" not in shown  # that is of full ranking
    frame = pd.read_parquet(tmp_path / "ranks.parquet")
    assert frame["sampled_greater"].max() <= 15
    assert "greater" not in frame
    # Resuming what has ended gives the score it was chosen by; another protocol is another run.
    assert call(monkeypatch, *typed, "resume=true") == 0
    full = [word for word in typed if not word.startswith("evaluation")]
    assert call(monkeypatch, *full, "resume=true") == 1
    assert "was started with another dataset.mask_history" in capfd.readouterr().err
