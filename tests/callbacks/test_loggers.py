"""metrics.csv keeps its lines through stops; TensorBoard says when it is missing."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from sigma.callbacks.loggers import EpochCsv, tensorboard
from sigma.errors import UserError


def log_epoch(logger: EpochCsv, epoch: int, score: float) -> None:
    logger.log_metrics({"epoch": epoch, "val/ndcg@10": score}, step=epoch)
    logger.log_metrics({"epoch": epoch, "train/loss": 1 - score}, step=epoch)


def test_one_line_an_epoch_and_lines_kept_through_a_stop(tmp_path: Path) -> None:
    first = EpochCsv(str(tmp_path))
    for epoch in range(3):
        log_epoch(first, epoch, epoch / 10)
    resumed = EpochCsv(str(tmp_path))
    for epoch in (2, 3):  # killed after logging epoch 2, before its checkpoint
        log_epoch(resumed, epoch, epoch / 5)
    resumed.log_metrics({"test/hr@10": 0.5, "epoch": 3}, step=9)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["epoch"].tolist() == [0, 1, 2, 3]
    assert table["val/ndcg@10"].tolist() == [0.0, 0.1, 0.4, 0.6]
    assert table["train/loss"].notna().all()
    assert pd.read_csv(tmp_path / "test_metrics.csv")["test/hr@10"].tolist() == [0.5]
    log_epoch(EpochCsv(str(tmp_path)), 0, 0.9)  # another run into the same folder
    assert pd.read_csv(tmp_path / "metrics.csv")["val/ndcg@10"].tolist() == [0.9]


def test_what_comes_without_an_epoch_is_of_the_current_one(tmp_path: Path) -> None:
    """As Lightning's LearningRateMonitor logs: before the epoch's own numbers, resumed or not."""
    module: Any = SimpleNamespace(current_epoch=0)
    for epochs in (range(3), range(3, 5)):
        logger = EpochCsv(str(tmp_path))
        logger.log_graph(module)
        for module.current_epoch in epochs:
            logger.log_metrics({"lr-Adam": module.current_epoch / 100}, step=7)
            log_epoch(logger, module.current_epoch, 0.5)
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert table["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert table["lr-Adam"].tolist() == [0.0, 0.01, 0.02, 0.03, 0.04]
    assert table["val/ndcg@10"].notna().all()


def test_tensorboard_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[tensorboard\]'"):
        tensorboard(str(tmp_path))
