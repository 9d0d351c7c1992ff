"""W&B: what an offline run holds, and that nothing of W&B can end a run."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from sigma.callbacks.wandb import WandbLogger
from sigma.callbacks.wandb_mode import choose_mode, has_login
from tests.callbacks.wandb_file import contents

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def logger(folder: Path, **options: Any) -> WandbLogger:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model": {"r": 5}, "seed": 1}))
    described = {"name": "sigma-tiny-s1", "group": "g", "job_type": "sigma", "tags": ["a", "b"]}
    return WandbLogger(str(folder), **{**described, **options})


def epoch(number: int, score: float) -> dict[str, float]:
    return {"epoch": number, "val/ndcg@10": score, "val/short/ndcg@10": score / 2}


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Warnings of this project; W&B's own logger goes to the run's log file."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("sigma")
    ]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/*run-*/*.wandb"))


def test_an_offline_run_holds_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "run"
    run = logger(folder)
    for number, score in enumerate([0.1, 0.3, 0.3, 0.2]):
        run.log_metrics(epoch(number, score), step=number)
        run.log_metrics({"epoch": number, "train/loss": 5.0 - number}, step=number)
    run.finalize("success")  # as Lightning does between fit and test
    run.log_metrics({"test/ndcg@10": 0.25, "test/short/ndcg@10": 0.2, "epoch": 3}, step=3)
    run.finalize("success")
    (path,) = files(folder)
    found = contents(path)
    assert found["config"]["model"] == {"r": 5}
    assert found["config"]["seed"] == 1
    record = found["run"]
    assert (record.display_name, record.run_group, record.job_type) == (
        "sigma-tiny-s1", "g", "sigma"
    )  # fmt: skip
    assert list(record.tags) == ["a", "b"]
    curve = [row["val/ndcg@10"] for row in found["history"] if "val/ndcg@10" in row]
    assert curve == [0.1, 0.3, 0.3, 0.2]
    assert [row["train/loss"] for row in found["history"] if "train/loss" in row] == [5, 4, 3, 2]
    assert "val/short/ndcg@10" in found["history"][0]
    summary = found["summary"]
    assert summary["best/val/ndcg@10"] == 0.3
    assert summary["best/epoch"] == 2  # of equals the later
    assert summary["best/val/short/ndcg@10"] == 0.15
    assert summary["test/ndcg@10"] == 0.25
    assert summary["test/short/ndcg@10"] == 0.2
    assert found["exit"] == 0
    assert f"wandb sync {path.parent}" in caplog.text


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = logger(folder)
    first.log_metrics(epoch(0, 0.4), step=1)
    first.finalize("failed")
    second = logger(folder, resume=True)
    second.log_metrics(epoch(1, 0.2), step=2)
    second.finalize("failed")
    fresh = logger(folder)
    fresh.log_metrics(epoch(0, 0.1), step=1)
    fresh.finalize("failed")
    assert first.version == second.version != fresh.version
    found = {path: contents(path) for path in files(folder)}
    ids = [f["run"].run_id for f in found.values()]
    assert sorted(map(ids.count, ids)) == [1, 2, 2]
    resumed = [f for f in found.values() if f["run"].run_id == second.version]
    assert {f["summary"]["best/val/ndcg@10"] for f in resumed} == {0.4}
    assert {f["exit"] for f in resumed} == {1}


def test_two_runs_in_one_process_stay_apart(tmp_path: Path) -> None:
    one, two = logger(tmp_path / "one"), logger(tmp_path / "two")
    one.log_metrics(epoch(0, 0.1), step=1)
    two.log_metrics(epoch(0, 0.2), step=1)
    for run in (one, two):
        run.finalize("failed")
    assert one.version != two.version
    scores = [contents(files(tmp_path / n)[0])["history"][0]["val/ndcg@10"] for n in ("one", "two")]
    assert scores == [0.1, 0.2]


@pytest.mark.parametrize("key", [KEY, "short"])
def test_no_network_or_a_bad_key_falls_back_to_offline(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    folder = tmp_path / "run"
    run = logger(folder, init_timeout=1)
    run.log_metrics(epoch(0, 0.1), step=1)
    run.finalize("failed")
    warnings = ours(caplog)
    assert len(warnings) == 1
    assert "so this run is logged offline" in warnings[0]
    offline = [p for p in files(folder) if p.parent.name.startswith("offline")]
    assert contents(offline[0])["history"][0]["val/ndcg@10"] == 0.1


def test_an_error_while_logging_ends_wandb_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = logger(tmp_path / "run")

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("the service has gone")

    monkeypatch.setattr(run.experiment, "log", broken)
    for number in range(3):
        run.log_metrics(epoch(number, 0.1), step=number)
    run.finalize("success")
    warnings = ours(caplog)
    assert warnings == ["W&B is off for the rest of this run: the service has gone"]


def test_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = logger(tmp_path / "run")
    run.log_metrics(epoch(0, 0.1), step=1)
    run.log_metrics(epoch(1, 0.1), step=1)
    run.finalize("success")
    (warning,) = ours(caplog)
    assert "the package wandb is not installed" in warning


def test_disabled_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = logger(tmp_path / "run")
    run.log_metrics(epoch(0, 0.1), step=1)
    run.finalize("success")
    assert files(tmp_path / "run") == []


def test_the_mode_is_told_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_mode() == "offline"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert has_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_login()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert choose_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert choose_mode() == "offline"
