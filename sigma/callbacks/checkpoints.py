"""The paper's stopping rule, the best checkpoint, and the last one for going on after a stop."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from sigma.errors import UserError

log = logging.getLogger(__name__)


def check_monitor(owner: str, monitor: str, pl_module: L.LightningModule) -> None:
    """Refuse a metric that no validation will report, before an epoch is spent on it.

    Raises:
        UserError: names those there are.
    """
    ranking: Any = pl_module.metrics["val"]  # type: ignore[index]
    group, _, metric = monitor.removeprefix("val/").rpartition("/")
    known = metric in ranking.labels and (not group or group in ranking.groups)
    if not monitor.startswith("val/") or not known:
        raise UserError(
            f"{owner}={monitor} is not available; there are: "
            f"{', '.join(f'val/{label}' for label in ranking.labels)}"
            f"{', and of groups, such as val/short/…' if ranking.groups else ''}."
        )


class PaperEarlyStopping(EarlyStopping):
    """RecBole's rule: an equal score is an improvement; stops when more than ``patience`` fail.

    Args:
        monitor: metric, the larger the better.
        patience: failing validations allowed; the next one stops the run (the 11th for 10).
    """

    # Private to this class: Lightning's own comparison is strict.
    mode_dict = {"min": torch.le, "max": torch.ge}  # noqa: RUF012

    def __init__(self, monitor: str = "val/ndcg@10", patience: int = 10) -> None:
        super().__init__(monitor, mode="max", patience=patience + 1, check_on_train_epoch_end=False)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        check_monitor("callbacks.early_stopping.monitor", self.monitor, pl_module)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was, but with the patience that is asked for now."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that was over, but for its test, when it was killed trains no further."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class BestCheckpoint(ModelCheckpoint):
    """The best epoch's weights; of equal scores the later one, as in RecBole.

    Args:
        dirpath: folder of checkpoints.
        monitor: metric, the larger the better.
    """

    def __init__(self, dirpath: str, monitor: str = "val/ndcg@10") -> None:
        super().__init__(
            dirpath,
            filename="best",
            monitor=monitor,
            mode="max",
            save_top_k=1,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        check_monitor("callbacks.best.monitor", str(self.monitor), pl_module)
        super().setup(trainer, pl_module, stage)

    def _ModelCheckpoint__warn_if_dir_not_empty(self, dirpath: object) -> None:  # noqa: N802
        """A resumed run finds its own checkpoints there; nothing to warn of."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was, in this folder: a run may have been moved, and Lightning would then forget the
        best score and test the old folder's checkpoint.
        """

        def here(path: str | None) -> str | None:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here(state_dict[name]) for name in paths if name in state_dict}
        best = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict(
            {**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath}
        )

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        if current is not None and self.best_model_score is not None:
            return bool(current >= self.best_model_score)
        return super().check_monitor_top_k(trainer, current)


class LastCheckpoint(Callback):
    """``last.ckpt``, replaced in one step at each epoch's end and after so many seconds within one.

    A run killed at any moment finds either the older or the newer whole file, never one of weights
    that are not finite: nothing could go on from those.

    Args:
        dirpath: folder of checkpoints.
        every_seconds: of training between two checkpoints within an epoch.
    """

    def __init__(self, dirpath: str, every_seconds: float = 60.0) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self.every_seconds = every_seconds
        self._saved_at = time.monotonic()

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        checks = [p.isfinite().all() for p in trainer.lightning_module.parameters()]
        finite = not checks or bool(torch.stack(checks).all())  # read at once
        if not trainer.strategy.reduce_boolean_decision(finite):
            log.warning("The weights are not finite any more; %s is not replaced.", self.path)
            self._saved_at = time.monotonic()
            return
        partial = self.path.with_suffix(".partial")
        try:
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                os.replace(partial, self.path)
        finally:
            if trainer.is_global_zero:  # a part of it would keep a full disk full
                partial.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        # Gradients that wait for their step (trainer.accumulate_grad_batches) are in no checkpoint.
        # The last batch of an epoch is left to the epoch's end, after validation.
        loop = trainer.fit_loop
        if loop._should_accumulate() or loop.epoch_loop._is_training_done:
            return
        due = time.monotonic() - self._saved_at >= self.every_seconds
        if trainer.world_size > 1:  # clocks differ, and saving is done together or not at all
            due = trainer.strategy.broadcast(due)
        if due:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)
