"""Runs that are killed and go on, and runs that are repeated: the same row, bit for bit."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.front_door import ROOT, command, environment, run, write_sequences

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
    call = command(folder, whole.parent / "data.txt", *SETTINGS, "resume=true")
    last = folder / "checkpoints" / "last.ckpt"
    reached: list[int] = []
    for steps in (7, 31):  # in the middle of the first and of a later epoch
        with (whole.parent / "killed.log").open("a") as output:
            process = subprocess.Popen(
                call, cwd=ROOT, env=environment(), stdout=output, stderr=output
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
    shown = run(*call)
    same(whole, folder)
    assert row(folder)["efficiency"]["sessions"] == 3
    # The first epoch shown was begun by another process: its time is this one's alone.
    first = next(line for line in shown.splitlines() if line.startswith("epoch"))
    assert re.search(r"  \d+(\.\d)? s  ", first), first


def test_stopped_between_two_epochs(whole: Path) -> None:
    """The last checkpoint is then of an epoch's end; it must not count into the next one's loss."""
    folder = whole.parent / "between"
    call = command(folder, whole.parent / "data.txt", *SETTINGS, "resume=true")
    run(*call, "trainer.max_epochs=1")
    (folder / "row.json").unlink()
    run(*call)
    same(whole, folder)


def test_same_seed_same_row_and_another_seed_another(whole: Path) -> None:
    data = whole.parent / "data.txt"
    run(*command(whole.parent / "again", data, *SETTINGS))
    same(whole, whole.parent / "again")
    run(*command(whole.parent / "other", data, *SETTINGS, "seed=1"))
    assert row(whole.parent / "other")["metrics"] != row(whole)["metrics"]


def test_resume_of_a_folder_takes_its_settings_and_a_finished_run_is_left_alone(
    whole: Path,
) -> None:
    before = (whole / "row.json").read_bytes()
    output = run(*command(whole, whole.parent / "data.txt")[:2], f"resume={whole}")
    assert "finished already" in output
    assert (whole / "row.json").read_bytes() == before


def test_resume_with_other_settings_is_refused(whole: Path) -> None:
    folder = whole.parent / "changed"
    data = whole.parent / "data.txt"
    run(*command(folder, data, "trainer.max_epochs=1"))
    (folder / "row.json").unlink()
    output = run(*command(folder, data, "resume=true", "task.optimizer.lr=0.01"), expect=1)
    assert "was started with another task.optimizer.lr (0.001, now 0.01)" in output
    assert "Traceback" not in output


def test_resume_of_what_is_no_run(tmp_path: Path) -> None:
    output = run(*command(tmp_path / "x", tmp_path / "y")[:2], f"resume={tmp_path}", expect=1)
    assert "is not the folder of a run" in output


def test_nan_loss_names_step_and_last_good_checkpoint(tmp_path: Path) -> None:
    data = write_sequences(tmp_path / "data.txt")
    output = run(*command(tmp_path / "run", data, "task.optimizer.lr=1e30"), expect=1)
    assert "The training loss became nan at step" in output
    assert "last good checkpoint" in output
    assert "Traceback" not in output
