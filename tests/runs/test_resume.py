"""Runs that are killed and go on, and runs that are repeated: the same row, bit for bit."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sigma.task import SequenceTask
from tests.in_process import arguments, call
from tests.runs.front_door import ROOT, command, environment, run, write_sequences

SETTINGS = (
    "trainer.max_epochs=6",
    "callbacks.early_stopping.patience=1",
    "callbacks.last.every_seconds=0.001",  # a checkpoint after every step
    "dataset.batch_size=48",
)


def row(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "row.json").read_text())


def same(a: Path, b: Path) -> None:
    first, second = row(a), row(b)
    for part in ("metrics", "best_epoch", "epochs", "parameters", "data"):
        assert first[part] == second[part], part
    pd.testing.assert_frame_equal(
        pd.read_parquet(a / "ranks.parquet"), pd.read_parquet(b / "ranks.parquet")
    )
    saved = [torch.load(x / "checkpoints" / "last.ckpt", weights_only=True) for x in (a, b)]
    first, second = (s["callbacks"]["History"]["epochs"] for s in saved)
    assert first == second  # every epoch's loss and metrics
    weights = [torch.load(x / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
               for x in (a, b)]  # fmt: skip
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_sequences(folder / "data.txt")
    run(*command(folder / "whole", data, *SETTINGS))
    return folder / "whole"


def test_killed_twice_and_resumed_ends_as_if_never_killed(whole: Path) -> None:
    folder = whole.parent / "killed"
    typed = command(folder, whole.parent / "data.txt", *SETTINGS, "resume=true")
    last = folder / "checkpoints" / "last.ckpt"
    reached: list[int] = []
    for steps in (7, 31):  # in the middle of the first and of a later epoch
        with (whole.parent / "killed.log").open("a") as output:
            process = subprocess.Popen(
                typed, cwd=ROOT, env=environment(), stdout=output, stderr=output
            )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if last.exists() and torch.load(last, weights_only=True)["global_step"] >= steps:
                break
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()  # SIGKILL
        process.wait()
        reached.append(torch.load(last, weights_only=True)["global_step"])
    assert reached[1] > reached[0] >= 7
    shown = run(*typed)
    same(whole, folder)
    assert row(folder)["efficiency"]["sessions"] == 3
    # The first epoch shown was begun by another process: its time is this one's alone.
    first = next(line for line in shown.splitlines() if line.startswith("epoch"))
    assert re.search(r"  \d+(\.\d)? s  ", first), first


def test_stopped_between_two_epochs(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint is then of an epoch's end; it must not count into the next one's loss.

    The first part ended because it was to have one epoch, so with more of them it goes on.
    """
    folder = whole.parent / "between"
    typed = arguments(folder, whole.parent / "data.txt", *SETTINGS)
    assert call(monkeypatch, *typed, "trainer.max_epochs=1") == 0
    assert row(folder)["epochs"] == 1
    assert call(monkeypatch, f"resume={folder}", "trainer.max_epochs=6") == 0
    assert row(folder)["config"]["trainer"]["max_epochs"] == 6
    same(whole, folder)


def test_same_seed_same_row_and_another_seed_another(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ran before in the process."""
    data = whole.parent / "data.txt"
    assert call(monkeypatch, *arguments(whole.parent / "other", data, *SETTINGS, "seed=1")) == 0
    assert call(monkeypatch, *arguments(whole.parent / "again", data, *SETTINGS)) == 0
    same(whole, whole.parent / "again")
    assert row(whole.parent / "other")["metrics"] != row(whole)["metrics"]


def test_resume_of_a_folder_takes_its_settings_and_a_finished_run_is_left_alone(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole / "row.json").read_bytes()
    assert call(monkeypatch, f"resume={whole}") == 0
    assert "finished already" in capsys.readouterr().out
    assert (whole / "row.json").read_bytes() == before
    # Where early stopping ended it, be it at the last epoch allowed, more of them change nothing.
    early = tmp_path / "early"
    shutil.copytree(whole, early)
    (early / "row.json").write_text(json.dumps(row(whole) | {"best_epoch": 3}))
    assert call(monkeypatch, f"resume={early}", "trainer.max_epochs=9") == 0
    assert "finished already" in capsys.readouterr().out


def test_a_folder_that_holds_a_run_gets_no_other(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left of a stopped one would else be gone on from under other settings."""
    data = whole.parent / "data.txt"
    stopped = tmp_path / "stopped"
    (stopped / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints" / "last.ckpt", stopped / "checkpoints")
    for folder in (whole, stopped):
        kept = {p: p.read_bytes() for p in folder.glob("*.json")}
        assert call(monkeypatch, *arguments(folder, data, *SETTINGS, "seed=7")) == 1
        assert f"{folder} holds a run already; go on with it by" in capsys.readouterr().err
        assert {p: p.read_bytes() for p in folder.glob("*.json")} == kept


def test_a_refused_resume_costs_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though Hydra writes down what was typed before any check; and options lie elsewhere."""
    folder, data = tmp_path / "run", whole.parent / "data.txt"
    (tmp_path / "conf2" / "model").mkdir(parents=True)
    settings = (ROOT / "conf" / "model" / "sigma.yaml").read_text()
    (tmp_path / "conf2" / "model" / "mine.yaml").write_text(settings)
    elsewhere = f"--config-dir={tmp_path / 'conf2'}"
    typed = arguments(folder, data, "model=mine", "trainer.max_epochs=1")
    assert call(monkeypatch, elsewhere, *typed) == 0
    before = (folder / "row.json").read_bytes()

    assert call(monkeypatch, f"resume={folder}", "task.optimizer.lr=0.01") == 1
    error = capsys.readouterr().err
    assert "was started with another task.optimizer.lr (0.001, now 0.01)" in error
    assert call(monkeypatch, f"hydra.run.dir={folder}", "resume=true") == 1
    assert "was started with another" in capsys.readouterr().err
    for flags in ([], ["--config-dir", str(tmp_path / "conf2")]):
        assert call(monkeypatch, *flags, f"resume={folder}") == 0
        assert "finished already" in capsys.readouterr().out
    assert (folder / "row.json").read_bytes() == before

    (folder / "row.json").write_bytes(before[:200])
    assert call(monkeypatch, f"resume={folder}") == 1
    assert "row.json is damaged (JSONDecodeError" in capsys.readouterr().err

    (folder / "row.json").unlink()
    with (folder / "checkpoints" / "last.ckpt").open("r+b") as file:
        file.truncate(1000)
    assert call(monkeypatch, f"resume={folder}") == 1
    assert "last.ckpt is damaged (cut short" in capsys.readouterr().err


def test_a_moved_run_goes_on_as_it_would_have_in_its_place(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its best score and checkpoint are those it had: later epochs that are worse replace nothing.

    And the patience asked for now counts, not the one before.
    """
    typed = ("trainer.max_epochs=3", "task.optimizer.lr=0.05", "dataset.batch_size=48")
    folder, data = tmp_path / "first", whole.parent / "data.txt"
    assert call(monkeypatch, *arguments(folder, data, *typed)) == 0
    place = tmp_path / "other" / "place"
    shutil.copytree(folder, place)
    asked = ("trainer.max_epochs=40", "callbacks.early_stopping.patience=1")
    for at in (folder, place):
        assert call(monkeypatch, f"resume={at}", *asked) == 0
    same(folder, place)
    told = row(place)
    assert told["epochs"] == told["best_epoch"] + 3  # two failing epochs after the best
    # Killed between the last epoch and the test, then moved: the test is of this folder's best.
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (moved / "row.json").unlink()
    shutil.rmtree(folder)
    assert call(monkeypatch, f"resume={moved}") == 0
    assert row(moved)["metrics"] == told["metrics"]


@pytest.mark.parametrize("typed", [[], ["dataset.trim=false", "task.by_length=false"]])
def test_a_run_of_a_version_with_more_settings_goes_on(
    typed: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is gone decided nothing but speed, be it a default or what was typed."""
    folder, data = tmp_path / "run", whole.parent / "data.txt"
    assert call(monkeypatch, *arguments(folder, data, *SETTINGS, "trainer.max_epochs=1")) == 0
    config = json.loads((folder / "config.json").read_text())
    config["dataset"]["trim"] = config["task"]["by_length"] = not typed
    del config["task"]["capture"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "row.json").write_text(json.dumps(row(folder) | {"config": config}))
    command_line = json.loads((folder / "command.json").read_text())
    command_line["overrides"] += typed
    (folder / "command.json").write_text(json.dumps(command_line))
    assert call(monkeypatch, f"resume={folder}") == 0  # finished
    assert call(monkeypatch, f"resume={folder}", "trainer.max_epochs=6") == 0
    same(whole, folder)


def test_other_data_is_refused_before_a_row_is_of_two(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, folder = tmp_path / "data.txt", tmp_path / "run"
    lines = (whole.parent / "data.txt").read_text().splitlines()
    data.write_text("\n".join(lines))
    typed = arguments(folder, data, "trainer.max_epochs=1")
    assert call(monkeypatch, *typed) == 0
    user, *items = lines[-1].split()
    for changed in (lines[:-5], [*lines[:-1], " ".join([user, *reversed(items)])]):
        data.write_text("\n".join(changed))
        assert call(monkeypatch, f"resume={folder}", "trainer.max_epochs=3") == 1
        assert "was made on other data (" in capsys.readouterr().err
    data.write_text("\n".join(lines))
    assert call(monkeypatch, f"resume={folder}", "trainer.max_epochs=2") == 0
    # Finished, and asked for with another file: the row is not this file's.
    elsewhere = tmp_path / "copy.txt"
    elsewhere.write_text("\n".join(lines))
    at = f"dataset.path={elsewhere}"
    for content, code in ((lines, 0), (lines[:-5], 1)):
        elsewhere.write_text("\n".join(content))
        assert call(monkeypatch, f"resume={folder}", at, "trainer.max_epochs=2") == code


def test_sigterm_says_how_to_go_on_and_ends_a_sweep(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told_to_stop(task: SequenceTask) -> None:
        if task.trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SequenceTask, "on_train_epoch_start", told_to_stop)
    typed = arguments(tmp_path, whole.parent / "data.txt", "trainer.max_epochs=2", "seed=1,2")
    sweep = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir=s${seed}"]
    assert call(monkeypatch, "-m", *typed, *sweep) == 143
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: Stopped by SIGTERM (a time limit, docker stop or kill)."
    assert second.endswith(f"go on with: python train.py resume={tmp_path / 'sweep' / 's1'}")
    assert [p.name for p in (tmp_path / "sweep").glob("s*")] == ["s1"]


def test_resume_of_what_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, f"resume={tmp_path}") == 1
    assert "is not the folder of a run" in capsys.readouterr().err


def test_nan_loss_names_step_and_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_sequences(tmp_path / "data.txt")
    often = "callbacks.last.every_seconds=0.001"  # so there is a checkpoint, which does not help
    typed = arguments(tmp_path / "run", data, "task.optimizer.lr=1e30", often)
    assert call(monkeypatch, *typed) == 1
    output = capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert "The training loss became nan at step" in output
    assert "last good checkpoint" in output
    assert "start again in a new folder (hydra.run.dir=…), with a lower task.optimizer.lr" in output
    assert "go on with" not in output
    assert "Traceback" not in output
