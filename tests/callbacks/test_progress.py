"""What a run prints and draws: lines, tables, the bar on a terminal, the picture of its epochs."""

import io
import logging
import os
import pty
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from matplotlib.image import imread
from rich.console import Console

from sigma.callbacks import history
from sigma.callbacks.efficiency import Efficiency
from sigma.callbacks.history import Curves, History
from sigma.callbacks.progress import Progress, duration
from sigma.callbacks.stopping import PaperEarlyStopping
from sigma.callbacks.tables import data_table, popularity_hit_rate, result_table, result_title, show
from sigma.datamodules.sets.simulated import Simulated
from sigma.datamodules.statistics import DatasetStatistics, Expected
from sigma.errors import UserError
from sigma.models.base import Model
from sigma.ranking.metrics import ALL, SAMPLED, UNSEEN, RankingMetrics, metric_name
from sigma.runs.files import CURVES, LAST
from sigma.task import SequenceTask
from tests.runs.front_door import (
    ROOT,
    Capture,
    Logged,
    Patch,
    command,
    environment,
    write_sequences,
)

TASK = SequenceTask.__new__(SequenceTask)


def printed(table: object) -> str:
    console = Console(file=io.StringIO(), width=110)
    console.print(table)
    return console.file.getvalue()


def history_of(*scores: float) -> History:
    filled = History()
    filled.monitor = "val/ndcg@10"
    filled.epochs = [
        {"epoch": e, "train/loss": 5.0 / (e + 1), "val/ndcg@10": score, "val/short/hr@10": 0.2}
        for e, score in enumerate(scores)
    ]
    return filled


def test_durations_read_well() -> None:
    assert [duration(s) for s in (0.44, 41.2, 99, 3723)] == ["0.4 s", "41 s", "99 s", "1:02:03"]


def test_of_equal_epochs_the_later_is_the_best() -> None:
    assert history_of(0.1, 0.3, 0.3, 0.2).best()["epoch"] == 2
    assert history_of().best() == {}
    again = History()
    again.load_state_dict(history_of(0.1, 0.2).state_dict())
    assert again.epochs == history_of(0.1, 0.2).epochs


@pytest.mark.parametrize("first", [True, False])
def test_one_process_of_several_prints(first: bool, caplog: Logged) -> None:
    caplog.set_level(logging.INFO)
    progress, stopped, efficiency = Progress(), PaperEarlyStopping(), Efficiency()
    stopped.stopped_epoch = 3
    trainer: Any = SimpleNamespace(is_global_zero=first, current_epoch=2, max_epochs=5)
    trainer.callback_metrics = {"val/ndcg@10": 0.5, "train/loss": 1.5}
    trainer.callbacks = [history_of(0.1, 0.6, 0.5), efficiency]
    trainer.early_stopping_callback = stopped
    progress.on_train_epoch_start(trainer, TASK)
    efficiency.train_samples, efficiency.train_seconds = 100, 0.5
    progress.on_train_epoch_end(trainer, TASK)
    progress.on_train_end(trainer, TASK)
    assert len(caplog.messages) == (2 if first else 0)
    if first:
        parts = re.split("  +", caplog.messages[0])
        assert parts[1:4] == ["2", "loss 1.5000", "val/ndcg@10 0.5000"]
        assert parts[4:7] == ["best 0.6000 (epoch 1)", "0.0 s", "200 samples/s"]
        # As experiments.benchmarks.gpu reads it.
        assert re.search(r"  ([0-9.]+) s(?:  |$)", caplog.messages[0])


@pytest.mark.parametrize(
    ("error", "checkpoint", "note"),
    [
        *[(error, True, "go on with: python") for error in (OSError("disk"), SIGTERMException())],
        (SIGTERMException(), False, "There is no checkpoint to go on from yet."),
        (RuntimeError("disk"), False, None),
        (UserError("The training loss became nan"), True, "start again in a new folder"),
    ],
)
def test_an_error_says_how_to_go_on(
    error: BaseException, checkpoint: bool, note: str | None, tmp_path: Path
) -> None:
    if checkpoint:
        (tmp_path / LAST).parent.mkdir()
        (tmp_path / LAST).touch()
    trainer: Any = SimpleNamespace(default_root_dir=tmp_path)
    Progress().on_exception(trainer, TASK, error)
    notes = getattr(error, "__notes__", [])
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


def test_the_data_table_says_whether_counts_are_as_expected() -> None:
    counts = ("shop", 10, 20, 1234567, 5.5, 0.25, 6, 7, 8, 0, 0, 0, 0)
    assert "1,234,567" in printed(data_table(DatasetStatistics(*counts, None, None, 0)))
    expected = Expected("the 2014 release", users=11)
    assert "differ" in printed(data_table(DatasetStatistics(*counts, expected, False, 0)))
    assert "match" in printed(data_table(DatasetStatistics(*counts, expected, True, 0)))


def test_names_in_tables_are_text(capsys: Capture) -> None:
    """No markup, which took parts of a name away or ended in a traceback, and no pictures."""
    name = "[/x] [red]shop [pack of 3] :heart:"
    counts = (name, 10, 20, 1234567, 5.5, 0.25, 6, 7, 8, 0, 0, 0, 0)
    show(data_table(DatasetStatistics(*counts, None, None, 0)))
    metrics = RankingMetrics(groups={"[/y] [b]long": [5, None]}, rankings=[ALL])
    scores = {f"val/{metric_name(ALL, '[/y] [b]long', 'hr@10')}": 0.2}
    show(result_table(result_title(name, {}, Model()), scores, metrics))
    printed = capsys.readouterr().out
    assert f"Data: {name}" in printed
    assert f"Results: {name}" in printed
    assert "[/y] [b]long" in printed


def test_results_say_that_a_model_reads_the_targets_time() -> None:
    model, best = Model(), history_of(0.1, 0.3).best()
    assert result_title("shop", best, model) == "Results: shop, best epoch 1"
    model.time = "history"
    assert result_title("shop", {}, model) == "Results: shop"
    model.time = "target"
    title = result_title("shop", best, model)
    assert title == "Results: shop, best epoch 1, by a model that reads the target's time"


@pytest.mark.parametrize("ranking", [ALL, UNSEEN, SAMPLED])
def test_the_result_table_has_a_line_for_each_group(ranking: str) -> None:
    metrics = RankingMetrics(groups={"short": [0, 5], "long": [5, None]}, rankings=[ranking])
    scores = {f"val/{ranking}hr@10": 0.1, f"test/{ranking}mrr@10": 0.03}
    scores |= {f"val/{metric_name(ranking, 'short', 'hr@10')}": 0.2}
    text = printed(result_table("Results", scores, metrics))
    assert "long" not in text
    overall, short = (line for line in text.splitlines() if " all " in line or "short" in line)
    assert re.findall(r"\d\.\d+|–", overall) == ["0.1000", "–", "–", "–", "–", "0.0300"]
    assert re.findall(r"\d\.\d+|–", short) == ["0.2000", *"–––––"]


def test_the_popularity_ranking_by_hand(tmp_path: Path) -> None:
    data = Simulated(root=str(tmp_path), seed=1)
    data.prepare_data()
    data.setup()
    assert data.split is not None
    assert data.sequences is not None
    counts = data.item_counts().tolist()
    hits = []
    for target in data.sequences.items[data.split.test]:
        count = counts[target - 1]
        above, ties = sum(c > count for c in counts), counts.count(count)
        hits.append(max(0, min(10 - above, ties)) / ties)
    assert popularity_hit_rate(data) == pytest.approx(sum(hits) / len(hits))


def draw_curves(folder: Path, *scores: float) -> None:
    options = {"fast_dev_run": False, "is_global_zero": True, "default_root_dir": folder}
    Curves().on_fit_end(SimpleNamespace(callbacks=[history_of(*scores)], **options), TASK)


@pytest.mark.parametrize("epochs", [0, 1, 60])
def test_a_readable_picture(epochs: int, tmp_path: Path) -> None:
    draw_curves(tmp_path, *[0.1] * epochs)
    assert (tmp_path / CURVES).exists() == (epochs > 0)
    if epochs:
        height, width, _ = imread(tmp_path / CURVES, format="png").shape
        assert (width, height) >= (1000, 400)


def test_a_failing_picture_is_a_warning(tmp_path: Path, monkeypatch: Patch, caplog: Logged) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no fonts")

    monkeypatch.setattr(history, "draw", broken)
    draw_curves(tmp_path, 0.1)
    assert "no fonts" in caplog.text


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_the_lines(tmp_path: Path) -> None:
    data = write_sequences(tmp_path / "tiny.txt", users=60, items=30)
    typed = command(tmp_path / "run", data, "trainer.max_epochs=2")
    ours, theirs = pty.openpty()
    size = {"COLUMNS": "140", "TERM": "xterm-256color"}
    with subprocess.Popen(typed, cwd=ROOT, env=environment() | size, stdout=theirs) as running:
        os.close(theirs)
        output = b""
        try:
            while part := os.read(ours, 65536):
                output += part
        except OSError:  # how Linux says that the other end has closed
            pass
        assert running.wait() == 0
    os.close(ours)
    text = output.decode(errors="replace")
    assert "━" in text
    assert "epoch   1  loss " in text
    assert "╭" in text  # tables with drawn borders
