"""The paper's stopping rule, the best checkpoint, and the last one for going on after a stop."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from sigma.runs.files import BEST, LAST

log = logging.getLogger(__name__)


class PaperEarlyStopping(EarlyStopping):
    """RecBole's rule: an equal score is an improvement; stops when more than ``patience`` fail.

    Args:
        patience: failing validations allowed; the next one stops the run (the 11th for 10).
    """

    # Private to this class: Lightning's own comparison is strict.
    mode_dict = {"min": torch.le, "max": torch.ge}  # noqa: RUF012

    def __init__(self, patience: int = 10) -> None:
        super().__init__("", mode="max", patience=patience + 1, check_on_train_epoch_end=False)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.monitor = str(pl_module.monitor)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was, but with the patience of this start."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that was over, but for its test, when it was killed trains no further."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class BestCheckpoint(ModelCheckpoint):
    """The best epoch's weights; of equal scores the later one, as in RecBole."""

    def __init__(self) -> None:
        super().__init__(
            filename=Path(BEST).stem,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.monitor = str(pl_module.monitor)
        self.dirpath = str((Path(trainer.default_root_dir) / BEST).parent)
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The test takes the best epoch's weights; the callbacks still know all epochs."""
        if trainer.state.fn != TrainerFn.FITTING:
            checkpoint["callbacks"].clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was, in this folder: a run may have been moved, and Lightning would then forget the
        best score and test the old folder's checkpoint.
        """
        if state_dict["best_model_path"]:
            path = str(Path(str(self.dirpath)) / Path(BEST).name)
            paths = {"best_model_path": path, "kth_best_model_path": path}
            best = {path: state_dict["best_model_score"]}
            state_dict = {**state_dict, **paths, "best_k_models": best}
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether a score is the best so far; the score is the same in all processes."""
        if current is not None and self.best_model_score is not None:
            return bool(current >= self.best_model_score)
        return super().check_monitor_top_k(trainer, current)


class LastCheckpoint(Callback):
    """``last.ckpt``, replaced in one step at each epoch's end and after so many seconds within one.

    A run killed at any moment finds either the older or the newer whole file, never one of weights
    that are not finite: nothing could go on from those. Lightning's ``ModelCheckpoint`` knows
    neither, and would save while gradients wait for their step.

    Args:
        every_seconds: of training between two checkpoints within an epoch.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        self.every_seconds = every_seconds
        self.saved_at = time.monotonic()

    def save(self, trainer: L.Trainer) -> None:
        """Replace the file, unless the weights are broken."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(trainer.default_root_dir) / LAST
        checks = [p.isfinite().all() for p in trainer.lightning_module.parameters()]
        finite = not checks or bool(torch.stack(checks).all())  # read at once
        self.saved_at = time.monotonic()
        if not trainer.strategy.reduce_boolean_decision(finite):
            log.warning("The weights are not finite any more; %s is not replaced.", path)
            return
        partial = path.with_suffix(".partial")
        try:
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                os.replace(partial, path)
        finally:
            if trainer.is_global_zero:  # a part of it would keep a full disk full
                partial.unlink(missing_ok=True)
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        # Gradients that wait for their step (trainer.accumulate_grad_batches) are in no checkpoint.
        # The last batch of an epoch is left to the epoch's end, after validation.
        batches = trainer.fit_loop.batch_idx + 1
        if batches % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return
        due = time.monotonic() - self.saved_at >= self.every_seconds
        if trainer.world_size > 1:  # clocks differ, and saving is done together or not at all
            due = trainer.strategy.broadcast(due)
        if due:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)
