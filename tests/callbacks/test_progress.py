"""The lines and tables a run prints, and the bar on a terminal."""

import io
import logging
import os
import pty
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from sigma.callbacks.checkpoints import PaperEarlyStopping
from sigma.callbacks.progress import Progress, duration
from sigma.callbacks.tables import data_table, result_table
from sigma.datamodules.statistics import DatasetStatistics, Expected
from sigma.errors import UserError
from sigma.task import SequenceTask
from tests.runs.front_door import ROOT, command, environment, write_sequences


def printed(table: object) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (41.2, "41 s"), (99, "99 s"), (3723, "1:02:03")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_best_score_outlives_a_stop() -> None:
    before, after = Progress(), Progress()
    before.best = (0.25, 7)
    after.load_state_dict(before.state_dict())
    assert after.best == (0.25, 7)
    after.load_state_dict({"best": None})
    assert after.best == (0.25, 7)


@pytest.mark.parametrize("first", [True, False])
def test_one_process_of_several_prints(first: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress, stopped = Progress(), PaperEarlyStopping()
    stopped.stopped_epoch = 3
    trainer: Any = SimpleNamespace(
        is_global_zero=first, current_epoch=3, max_epochs=5, early_stopping_callbacks=[stopped],
        callback_metrics={"val/ndcg@10": 0.5},
    )  # fmt: skip
    task = SequenceTask.__new__(SequenceTask)
    progress.on_train_epoch_end(trainer, task)
    progress.on_train_end(trainer, task)
    assert len(caplog.messages) == (2 if first else 0)
    assert progress.best == (0.5, 3)


@pytest.mark.parametrize(
    ("phase", "error", "checkpoint", "note"),
    [
        ("fit", RuntimeError("disk"), True, "go on with: python train.py resume="),
        ("test", RuntimeError("disk"), True, "go on with: python train.py resume="),
        ("fit", SIGTERMException(), True, "go on with: python train.py resume="),
        ("fit", SIGTERMException(), False, "There is no checkpoint to go on from yet."),
        ("fit", RuntimeError("disk"), False, None),
        ("fit", UserError("The training loss became nan"), True, "start again in a new folder"),
    ],
)
def test_an_error_says_how_to_go_on(
    phase: str, error: BaseException, checkpoint: bool, note: str | None, tmp_path: Path
) -> None:
    if checkpoint:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.ckpt").touch()
    trainer: Any = SimpleNamespace(
        default_root_dir=tmp_path, fast_dev_run=False, state=SimpleNamespace(fn=phase)
    )
    Progress().on_exception(trainer, SequenceTask.__new__(SequenceTask), error)
    notes = getattr(error, "__notes__", [])
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


def test_the_data_table_says_whether_counts_are_as_expected() -> None:
    counts = ("shop", 10, 20, 1234567, 5.5, 0.25, 6, 7, 8)
    assert "1,234,567" in printed(data_table(DatasetStatistics(*counts, None, None)))
    expected = Expected("the 2014 release", users=11)
    assert "differ" in printed(data_table(DatasetStatistics(*counts, expected, False)))
    assert "match" in printed(data_table(DatasetStatistics(*counts, expected, True)))


def test_the_result_table_has_a_line_for_each_group() -> None:
    val = {"hr@10": 0.1, "ndcg@10": 0.05, "mrr@10": 0.03, "short/hr@10": 0.2}
    text = printed(result_table("Results", {"overall": 30, "short": 10}, val, {}, {"hr@10": 0.01}))
    overall, short = (line for line in text.splitlines() if "overall" in line or "short" in line)
    assert all(number in overall for number in ("30", "0.1000", "0.0500", "0.0300", "0.0100"))
    assert "0.2000" in short
    assert "–" in short


def test_a_terminal_gets_a_bar_and_the_lines(tmp_path: Path) -> None:
    data = write_sequences(tmp_path / "tiny.txt", users=60, items=30)
    typed = command(tmp_path / "run", data, "trainer.max_epochs=2")
    ours, theirs = pty.openpty()
    size = {"COLUMNS": "140", "TERM": "xterm-256color"}
    with subprocess.Popen(typed, cwd=ROOT, env=environment() | size, stdout=theirs) as running:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:  # how Linux says that the other end has closed
            pass
        assert running.wait() == 0
    os.close(ours)
    text = shown.decode(errors="replace")
    bars = [line for line in text.replace("\r", "\n").splitlines() if "━" in line]
    assert any("loss: " in bar for bar in bars)
    assert any("val/ndcg@10: 0." in bar for bar in bars)
    assert "epoch   1  loss " in text
    assert "╭" in text  # tables with drawn borders
