"""Ends a trial of a search that does worse than others did after as many epochs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from sigma.callbacks.checkpoints import check_monitor
from sigma.errors import Pruned
from sigma.search import this_trial

if TYPE_CHECKING:
    from optuna.trial import Trial


class Pruning(Callback):
    """Reports a metric after each epoch; ends the run before the next where the pruner says so.

    Outside a search, in a run or plain multirun, it does nothing. A pruned run keeps its folder and
    checkpoints, is marked by ``pruned.json`` (trial, epoch, monitor, value) and has no result row.

    Args:
        folder: the run's folder.
        monitor: metric, the larger the better.

    Raises:
        Pruned: when the pruner says so.
        UserError: the metric does not exist, or Optuna is not installed.
    """

    def __init__(self, folder: str, monitor: str = "val/ndcg@10") -> None:
        self.folder = Path(folder)
        self.monitor = monitor
        self._trial: Trial | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            check_monitor("callbacks.pruning.monitor", self.monitor, pl_module)
            off = trainer.fast_dev_run or not trainer.is_global_zero  # type: ignore[attr-defined]
            self._trial = None if off else this_trial()
            if self._trial is not None:
                (self.folder / "pruned.json").unlink(missing_ok=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if self._trial is None or value is None:
            return
        # A trial that was killed and goes on may come to an epoch a second time.
        reported = self._trial.study.get_trials(deepcopy=False)[self._trial.number]
        if trainer.current_epoch not in reported.intermediate_values:
            self._trial.report(float(value), trainer.current_epoch)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not at an epoch's end: then its checkpoint and curves are still to be written, and a run
        # that has nothing more to train may as well finish.
        stop = self._trial is not None and self._trial.should_prune()
        if trainer.world_size > 1:
            stop = trainer.strategy.broadcast(stop)
        if not stop:
            return
        text = f"Pruned before epoch {trainer.current_epoch}: others had a higher {self.monitor}."
        if self._trial is not None:
            reported = self._trial.study.get_trials(deepcopy=False)[self._trial.number]
            mark: dict[str, Any] = {
                "trial": self._trial.number,
                "epoch": reported.last_step,
                "monitor": self.monitor,
                "value": reported.intermediate_values[reported.last_step],  # type: ignore[index]
            }
            (self.folder / "pruned.json").write_text(json.dumps(mark, indent=1))
        raise Pruned(text)
