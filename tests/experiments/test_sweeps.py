"""Sweeps that survive: killed, started again twice at once, every run ends once and the same."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from experiments.grid import expand
from experiments.status import main as status
from sigma.runs.identity import run_id
from tests.in_process import call
from tests.runs.front_door import (
    ROOT,
    SMALL,
    Capture,
    Patch,
    environment,
    multirun,
    run,
    write_sequences,
)

RUNS = 12


def sweep(folder: Path, data: Path, *more: str) -> list[str]:
    often = ["trainer.max_epochs=2", "callbacks.last.every_seconds=0.05", "callbacks.curves=null"]
    return multirun(folder, data, *often, "seed=1,2,3,4", "model.r=1,3,9", *more)


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)


def lasting(folder: Path) -> dict[str, dict[str, Any]]:
    """What of each row must be the same whenever and wherever it is made."""
    rows = {}
    for path in folder.glob("*/row.json"):
        row = json.loads(path.read_text())
        assert path.parent.name == run_id(row["config"])
        for key in ("callbacks", "logger"):
            del row["config"][key]
        keys = ("metrics", "best_epoch", "epochs", "data", "config")
        rows[path.parent.name] = {key: row[key] for key in keys}
    return rows


@pytest.mark.storm
@pytest.mark.slow
def test_killed_and_started_again_twice_at_once_ends_as_if_undisturbed(tmp_path: Path) -> None:
    data = write_sequences(tmp_path / "data.txt")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(*sweep(whole, data))
    assert len(lasting(whole)) == RUNS

    first = start(sweep(broken, data), tmp_path / "first.log")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and first.poll() is None:
        done = {path.parent for path in broken.glob("*/row.json")}
        begun = {path.parents[1] for path in broken.glob("*/checkpoints/last.ckpt")}
        if len(done) >= 3 and begun - done:  # in the middle of a run
            break
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = set(lasting(broken))
    assert 3 <= len(before) < RUNS, (tmp_path / "first.log").read_text()

    logs = [tmp_path / "second.log", tmp_path / "third.log"]
    both = [start(sweep(broken, data), log) for log in logs]
    assert [process.wait(timeout=240) for process in both] == [0, 0], logs[0].read_text()
    assert lasting(broken) == lasting(whole)
    # Which of the two ended a run does not matter, but only one did.
    text = "".join(log.read_text() for log in logs)
    ended = [Path(place).parent.name for place in re.findall(r"Result row: (.*)", text)]
    assert sorted(ended) == sorted(set(lasting(whole)) - before)


@pytest.mark.slow
def test_a_failed_job_is_recorded_and_the_rest_go_on(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    data = write_sequences(tmp_path / "data.txt")
    grid = ["seed=1", "model.r=1,-1,2", "trainer.max_epochs=1"]
    typed = sweep(tmp_path / "runs", data, *grid)[2:]
    assert call(monkeypatch, *typed) == 1
    assert "This job failed" in capsys.readouterr().out
    assert len(lasting(tmp_path / "runs")) == 2
    status([*SMALL, f"dataset.path={data}", *grid, "--runs", str(tmp_path / "runs")])
    text = " ".join(capsys.readouterr().out.split())
    assert "3 runs: 2 done, 1 failed" in text
    assert "failed: sigma-custom-s1-" in text

    # Started again, only the failed one is run.
    row = next((tmp_path / "runs").glob("*/row.json"))
    written = row.stat().st_mtime_ns
    assert call(monkeypatch, *typed) == 1
    assert len(list((tmp_path / "runs").glob("*/failed.json"))) == 1
    assert row.stat().st_mtime_ns == written


def test_status_knows_running_and_interrupted(tmp_path: Path, capsys: Capture) -> None:
    typed = [*SMALL, "dataset.path=x", "seed=1,2,3"]
    first, second, _ = (tmp_path / job.run_id for job in expand(typed))
    (first / "checkpoints").mkdir(parents=True)
    (first / "checkpoints" / "last.ckpt").touch()
    second.mkdir()
    with FileLock(second / ".lock"):
        status([*typed, "--runs", str(tmp_path)])
    text = " ".join(capsys.readouterr().out.split())
    assert "3 runs: 1 running, 1 interrupted, 1 missing" in text
    assert "left in one process" not in text  # nothing is known of how long a run takes
