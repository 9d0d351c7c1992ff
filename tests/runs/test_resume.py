"""Runs that are killed and go on, and runs that are repeated: the same row, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from filelock import FileLock

from sigma.runs.files import BEST, COMMAND, CONF, CONFIG, LAST, LOCK, RANKS, ROW
from sigma.task import SequenceTask
from tests.in_process import arguments, call
from tests.runs.front_door import ROOT, Capture, Patch, command, environment, row, write_sequences

SETTINGS = (
    "trainer.max_epochs=6",
    "callbacks.early_stopping.patience=1",
    "callbacks.last.every_seconds=0.001",  # a checkpoint after every step
    "dataset.batch_size=48",
    "callbacks.curves=null",
)


def change(path: Path, **content: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


def expect_same(a: Path, b: Path) -> None:
    for part in ("metrics", "best_epoch", "epochs", "parameters", "data"):
        assert row(a)[part] == row(b)[part], part
    pd.testing.assert_frame_equal(pd.read_parquet(a / RANKS), pd.read_parquet(b / RANKS))
    last = [torch.load(folder / LAST, weights_only=True) for folder in (a, b)]
    first, second = (checkpoint["callbacks"]["History"]["epochs"] for checkpoint in last)
    assert first == second  # every epoch's loss and metrics
    best = [torch.load(folder / BEST, weights_only=True)["state_dict"] for folder in (a, b)]
    assert all(torch.equal(best[0][k], best[1][k]) for k in best[0])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_sequences(folder / "data.txt")
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, *arguments(folder / "undisturbed", data, *SETTINGS)) == 0
    return folder / "undisturbed"


@pytest.fixture(scope="module")
def data(undisturbed: Path) -> Path:
    return undisturbed.parent / "data.txt"


@pytest.mark.slow
def test_killed_twice_and_resumed_ends_as_if_never_killed(
    undisturbed: Path, data: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    folder = tmp_path / "killed"
    typed = command(folder, data, *SETTINGS, "resume=true")
    reached: list[int] = []
    for steps in (7, 31):  # in the middle of the first and of a later epoch
        with (tmp_path / "killed.log").open("a") as output:
            options = {"cwd": ROOT, "env": environment(), "stdout": output, "stderr": output}
            process = subprocess.Popen(typed, **options)
        deadline, last = time.monotonic() + 120, folder / LAST
        while process.poll() is None and time.monotonic() < deadline:
            if last.exists() and torch.load(last, weights_only=True)["global_step"] >= steps:
                break
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()  # SIGKILL
        process.wait()
        reached.append(torch.load(last, weights_only=True)["global_step"])
    assert reached[1] > reached[0] >= 7
    assert call(monkeypatch, *typed[2:]) == 0
    expect_same(undisturbed, folder)
    assert row(folder)["efficiency"]["sessions"] == 3


@pytest.mark.slow
def test_a_final_model_tests_its_last_epoch(data: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Trained on train and validation, also when it was killed before its test."""
    folder = tmp_path / "final"
    final = ("dataset.train_on_val=true", "callbacks.early_stopping=null", "trainer.max_epochs=2")
    assert call(monkeypatch, *arguments(folder, data, *final)) == 0
    before = row(folder)
    assert (before["metrics"]["val"], before["best_epoch"], before["epochs"]) == ({}, None, 2)
    assert before["data"]["val_samples"] == 0
    best, last = (torch.load(folder / name, weights_only=True) for name in (BEST, LAST))
    assert best["global_step"] == last["global_step"] > 0
    weights = [{k: v for k, v in c["state_dict"].items() if "model" in k} for c in (best, last)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    for name in (ROW, BEST):
        (folder / name).unlink()
    assert call(monkeypatch, f"resume={folder}") == 0
    assert row(folder)["metrics"] == before["metrics"]
    assert call(monkeypatch, f"resume={folder}") == 0  # it is finished


@pytest.mark.slow
def test_stopped_between_two_epochs(undisturbed: Path, data: Path, monkeypatch: Patch) -> None:
    """The last checkpoint is then of an epoch's end; it must not count into the next one's loss.

    The first part ended because it was to have one epoch, so with more of them it goes on.
    """
    folder = undisturbed.parent / "between"
    assert call(monkeypatch, *arguments(folder, data, *SETTINGS), "trainer.max_epochs=1") == 0
    assert row(folder)["epochs"] == 1
    assert call(monkeypatch, f"resume={folder}", "trainer.max_epochs=6") == 0
    assert row(folder)["config"]["trainer"]["max_epochs"] == 6
    expect_same(undisturbed, folder)


@pytest.mark.slow
def test_same_seed_same_row_and_another_seed_another(
    undisturbed: Path, data: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Whatever ran before in the process."""
    for name, seed in (("other", 1), ("again", 2020)):
        typed = arguments(tmp_path / name, data, *SETTINGS, f"seed={seed}")
        assert call(monkeypatch, *typed) == 0
    expect_same(undisturbed, tmp_path / "again")
    assert row(tmp_path / "other")["metrics"] != row(undisturbed)["metrics"]


def test_a_finished_run_is_left_alone(
    undisturbed: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    before = (undisturbed / ROW).read_bytes()
    assert call(monkeypatch, f"resume={undisturbed}") == 0
    # Where early stopping ended it, be it at the last epoch allowed, more of them change nothing.
    early = tmp_path / "early"
    shutil.copytree(undisturbed, early)
    change(early / ROW, best_epoch=3)
    assert call(monkeypatch, f"resume={early}", "trainer.max_epochs=9") == 0
    assert capsys.readouterr().out.count("finished already") == 2
    assert (undisturbed / ROW).read_bytes() == before


def test_a_folder_that_holds_a_run_gets_no_other(
    undisturbed: Path, data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """What is left of a stopped one would else be gone on from under other settings."""
    stopped = tmp_path / "stopped"
    (stopped / LAST).parent.mkdir(parents=True)
    shutil.copy(undisturbed / LAST, stopped / LAST)
    for folder in (undisturbed, stopped):
        before = {p: p.read_bytes() for p in folder.glob("*.json")}
        assert call(monkeypatch, *arguments(folder, data, *SETTINGS, "seed=7")) == 1
        assert f"{folder} holds a run already; go on with it by" in capsys.readouterr().err
        assert {p: p.read_bytes() for p in folder.glob("*.json")} == before


def test_a_folder_has_one_process(undisturbed: Path, monkeypatch: Patch, capsys: Capture) -> None:
    with FileLock(undisturbed / LOCK):
        assert call(monkeypatch, f"resume={undisturbed}") == 75
    assert "Another process is at the run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_refused_resume_costs_nothing(
    data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """Though Hydra writes down what was typed before any check; and options lie elsewhere."""
    folder, options = tmp_path / "run", tmp_path / "conf2"
    (options / "model").mkdir(parents=True)
    shutil.copy(CONF / "model" / "sigma.yaml", options / "model" / "mine.yaml")
    typed = arguments(folder, data, "model=mine", "trainer.max_epochs=1")
    assert call(monkeypatch, f"--config-dir={options}", *typed) == 0
    before = (folder / ROW).read_bytes()

    def expect(answer: str, code: int, *typed: str) -> None:
        assert call(monkeypatch, *typed) == code
        captured = capsys.readouterr()
        assert answer in captured.out + captured.err

    typed = ["--config-dir", str(options), f"resume={folder}"]
    changed = "was started with another task.optimizer.lr (0.001, now 0.01)"
    expect(changed, 1, *typed, "task.optimizer.lr=0.01")
    expect("was started with another", 1, f"hydra.run.dir={folder}", "resume=true")
    expect(f"if they are yours, add --config-dir={options}", 1, f"resume={folder}")
    expect("finished already", 0, *typed)
    assert (folder / ROW).read_bytes() == before
    (folder / ROW).write_bytes(before[:200])
    expect("row.json is damaged", 1, *typed)
    (folder / ROW).unlink()
    with (folder / LAST).open("r+b") as file:
        file.truncate(1000)
    expect("last.ckpt is damaged", 1, *typed)


@pytest.mark.slow
def test_a_moved_run_goes_on_as_it_would_have_in_its_place(
    data: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Its best score and checkpoint are those it had: later epochs that are worse replace nothing.

    And the patience of now counts, not the one before.
    """
    typed = ("trainer.max_epochs=3", "task.optimizer.lr=0.05", "dataset.batch_size=48")
    folder, place, moved = tmp_path / "first", tmp_path / "other" / "place", tmp_path / "moved"
    assert call(monkeypatch, *arguments(folder, data, *typed)) == 0
    shutil.copytree(folder, place)
    longer = ("trainer.max_epochs=40", "callbacks.early_stopping.patience=1")
    for at in (folder, place):
        assert call(monkeypatch, f"resume={at}", *longer) == 0
    expect_same(folder, place)
    ended = row(place)
    assert ended["epochs"] == ended["best_epoch"] + 3  # two failing epochs after the best
    # Killed between the last epoch and the test, then moved: the test is of this folder's best.
    shutil.copytree(folder, moved)
    (moved / ROW).unlink()
    shutil.rmtree(folder)
    assert call(monkeypatch, f"resume={moved}") == 0
    assert row(moved)["metrics"] == ended["metrics"]


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(
    undisturbed: Path, data: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Keys that are gone decided nothing but speed, be they defaults or typed; classes moved."""
    folder = tmp_path / "run"
    assert call(monkeypatch, *arguments(folder, data, *SETTINGS, "trainer.max_epochs=1")) == 0
    config = json.loads((folder / CONFIG).read_text())
    config["dataset"] |= {"_target_": "sigma.datamodules.custom.Custom", "trim": True, "seed": 2020}
    config["task"]["by_length"] = True
    del config["task"]["capture"]
    (folder / CONFIG).write_text(json.dumps(config))
    change(folder / ROW, config=config)
    overrides = json.loads((folder / COMMAND).read_text())["overrides"]
    change(folder / COMMAND, overrides=[*overrides, "dataset.trim=true", "task.by_length=true"])
    assert call(monkeypatch, f"resume={folder}") == 0  # finished
    assert call(monkeypatch, f"resume={folder}", "trainer.max_epochs=6") == 0
    expect_same(undisturbed, folder)


@pytest.mark.slow
def test_other_data_is_refused_before_a_row_is_of_two(
    data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    mine, folder, copy = tmp_path / "data.txt", tmp_path / "run", tmp_path / "copy.txt"
    lines = data.read_text().splitlines()
    mine.write_text("\n".join(lines))
    assert call(monkeypatch, *arguments(folder, mine, "trainer.max_epochs=1")) == 0
    user, *items = lines[-1].split()
    for changed in (lines[:-5], [*lines[:-1], " ".join([user, *reversed(items)])]):
        mine.write_text("\n".join(changed))
        assert call(monkeypatch, f"resume={folder}", "trainer.max_epochs=3") == 1
        assert "was made on other data (" in capsys.readouterr().err
    mine.write_text("\n".join(lines))
    assert call(monkeypatch, f"resume={folder}", "trainer.max_epochs=2") == 0
    # Finished, and resumed with another file: the row is not this file's.
    typed = (f"resume={folder}", f"dataset.path={copy}", "trainer.max_epochs=2")
    for content, code in ((lines, 0), (lines[:-5], 1)):
        copy.write_text("\n".join(content))
        assert call(monkeypatch, *typed) == code


def test_sigterm_says_how_to_go_on_and_ends_a_sweep(
    data: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    def stop_in_the_second_epoch(task: SequenceTask) -> None:
        if task.trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SequenceTask, "on_train_epoch_start", stop_in_the_second_epoch)
    typed = arguments(tmp_path, data, "trainer.max_epochs=2", "seed=1,2")
    sweep = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir=s${seed}"]
    assert call(monkeypatch, "-m", *typed, *sweep) == 143
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: Stopped by SIGTERM")
    assert second.endswith(f"resume={tmp_path / 'sweep' / 's1'}")
    assert [p.name for p in (tmp_path / "sweep").glob("s*")] == ["s1"]


def test_nan_loss_names_step_and_last_good_checkpoint(
    tmp_path: Path, data: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    often = "callbacks.last.every_seconds=0.001"  # so there is a checkpoint, which does not help
    typed = arguments(tmp_path / "run", data, "task.optimizer.lr=1e30", often)
    assert call(monkeypatch, *typed) == 1
    output = capsys.readouterr().err
    assert (tmp_path / "run" / LAST).is_file()
    assert "The training loss became nan at step" in output
    assert "start again in a new folder" in output
    assert "go on with" not in output
    assert "Traceback" not in output
