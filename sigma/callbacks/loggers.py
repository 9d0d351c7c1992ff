"""The loggers beside W&B: a CSV with one line an epoch, and TensorBoard when asked for."""

import csv
import importlib.util
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from sigma.errors import UserError
from sigma.runs.files import atomic_path


class EpochCsv(Logger):
    """``metrics.csv``: one line an epoch, written whole each time, kept through stops.

    Unlike Lightning's, which puts training and validation on lines of their own and starts anew
    when a run is resumed. Metrics that come without an epoch, as from Lightning's
    LearningRateMonitor, are of the current one. The test metrics go to ``test_metrics.csv``, one
    line.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._rows: dict[int, dict[str, Any]] | None = None
        self._module: Any = None

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    def _kept(self, first_epoch: int) -> dict[int, dict[str, Any]]:
        """Lines of the epochs before the one this process starts with."""
        path = self.folder / "metrics.csv"
        if first_epoch == 0 or not path.is_file():
            return {}
        with path.open(newline="") as file:
            rows = {int(float(row["epoch"])): dict(row) for row in csv.DictReader(file)}
        return {epoch: row for epoch, row in rows.items() if epoch < first_epoch}

    @rank_zero_only
    def log_graph(self, model: nn.Module, *_: Any) -> None:
        """Called before training with what knows the current epoch."""
        self._module = model

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if any(name.startswith("test/") for name in metrics):
            self._write("test_metrics.csv", [dict(metrics)])
            return
        current = 0 if self._module is None else self._module.current_epoch
        epoch = int(metrics.get("epoch", current))
        if self._rows is None:
            self._rows = self._kept(epoch)
        row = self._rows.setdefault(epoch, {})
        row.update(metrics)
        row.update({"epoch": epoch, "step": step})
        self._write("metrics.csv", list(self._rows.values()))

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        names = sorted({key for row in rows for key in row} - {"epoch", "step"})
        with atomic_path(self.folder / name) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", "step", *names])
            writer.writeheader()
            writer.writerows(rows)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """The config lies beside the file already."""


def tensorboard(folder: str) -> TensorBoardLogger:
    """Lightning's TensorBoard logger in ``<folder>/tensorboard``.

    Raises:
        UserError: TensorBoard is not installed.
    """
    if not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise UserError(
            "logger=tensorboard needs the package tensorboard: pip install -e '.[tensorboard]'"
            ", or choose logger=csv."
        )
    return TensorBoardLogger(folder, name="tensorboard", version="")
