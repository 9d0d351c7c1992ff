"""What is seen while a run trains: a bar on a terminal, and one line an epoch everywhere."""

import logging
import shlex
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import rich
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.early_stopping import EarlyStopping
from lightning.pytorch.callbacks.progress.rich_progress import CustomBarColumn, RichProgressBarTheme
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.progress import TextColumn, TimeRemainingColumn

from sigma.datamodules.batches import Batch
from sigma.errors import UserError

log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.5  # reading the loss waits for the device, so not at every step


def duration(seconds: float) -> str:
    """``0.4 s``, ``41 s`` or ``1:02:03``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


class Progress(RichProgressBar):
    """Lightning's rich bar with loss and ``monitor``, and a line that stays for each epoch.

    Without a terminal the bar is left out and the lines remain.

    Args:
        monitor: metric shown, the larger the better.
    """

    def __init__(self, monitor: str = "val/ndcg@10") -> None:
        theme = RichProgressBarTheme(metrics_text_delimiter="  ", metrics="")
        super().__init__(refresh_rate=4, theme=theme)
        self.monitor = monitor
        # The best score and its epoch: kept through stops.
        self.best: tuple[float, int] | None = None
        self._loss: Any = None
        self._read_at = self._epoch_start = self._train_end = 0.0
        self._samples = 0
        self._seconds: list[float] = []  # of whole epochs
        self._whole = False
        if not rich.get_console().is_terminal:
            self.disable()

    def enable(self) -> None:
        if rich.get_console().is_terminal:
            super().enable()

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        return [
            TextColumn("{task.description}"),
            CustomBarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(compact=True),
        ]

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch:>3}"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        shown = {} if self._loss is None else {"loss": f"{float(self._loss):.4f}"}
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None:
            shown[self.monitor] = f"{float(value):.4f}"
        left = self._time_left(trainer, trainer.current_epoch)
        return shown if left is None else {**shown, "run": f"≤ {duration(left)}"}

    def _update_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        now = time.monotonic()
        if now - self._read_at >= REFRESH_SECONDS:
            self._read_at = now
            super()._update_metrics(trainer, pl_module)

    def _time_left(self, trainer: L.Trainer, epochs_done: int) -> float | None:
        """Seconds until the last epoch allowed; early stopping may end it sooner."""
        if not self._seconds or trainer.max_epochs is None or trainer.max_epochs < 0:
            return None
        recent = self._seconds[-10:]
        return sum(recent) / len(recent) * (trainer.max_epochs - epochs_done)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # A run resumed within an epoch starts no epoch.
        self._epoch_start = self._train_end = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._epoch_start = self._train_end = time.monotonic()
        self._samples = 0
        self._whole = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, idx: int
    ) -> None:
        self._loss = outputs["loss"] if outputs else None  # a counted model has none
        self._samples += batch.num_targets
        self._train_end = time.monotonic()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, idx)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._train_end = time.monotonic()  # ``Efficiency`` has waited for the device

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._read_at = 0.0  # a new score is shown at once
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        seconds = time.monotonic() - self._epoch_start
        if self._whole:
            self._seconds.append(seconds)
        line = self._line(trainer, seconds)  # everywhere: it keeps the best score, too
        if trainer.is_global_zero:
            log.info(line)

    def _line(self, trainer: L.Trainer, seconds: float) -> str:
        metrics, epoch = trainer.callback_metrics, trainer.current_epoch
        parts = [f"epoch {epoch:>3}"]
        if (loss := metrics.get("train/loss")) is not None:
            parts.append(f"loss {float(loss):.4f}")
        if (value := metrics.get(self.monitor)) is not None:
            if self.best is None or float(value) >= self.best[0]:
                self.best = float(value), epoch
            star = "*" if self.best[1] == epoch else " "
            parts.append(f"{self.monitor} {float(value):.4f}{star}")
            parts.append(f"best {self.best[0]:.4f} (epoch {self.best[1]})")
        parts.append(duration(seconds))
        training = self._train_end - self._epoch_start
        if training > 0:
            parts.append(f"{self._samples / training:,.0f} samples/s")
        left = self._time_left(trainer, epoch + 1)
        if left:
            parts.append(f"at most {duration(left)} left")
        return "  ".join(parts)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        for callback in trainer.early_stopping_callbacks:
            if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
                log.info(
                    "Stopped early: %s has not improved for %d epochs.",
                    callback.monitor,
                    callback.wait_count,
                )

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_test_end(trainer, pl_module)
        # The results follow; a live bar would be drawn again below each of their lines.
        self._stop_progress()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Say what is kept and how to go on; ``sigma.runs.messages`` shows it below the error."""
        super().on_exception(trainer, pl_module, exception)
        folder = Path(trainer.default_root_dir)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if isinstance(exception, UserError) and "loss became" in str(exception):
            # From the same checkpoint the same settings come to the same loss.
            exception.add_note(
                "Resuming would end the same way: start again in a new folder (hydra.run.dir=…), "
                "with a lower task.optimizer.lr."
            )
        # A folder that held another run's was refused.
        elif (folder / "checkpoints" / "last.ckpt").is_file():
            exception.add_note(
                "The last checkpoint is kept; go on with: python train.py "
                f"resume={shlex.quote(str(folder))}"
            )
        elif isinstance(exception, KeyboardInterrupt | SIGTERMException):
            exception.add_note("There is no checkpoint to go on from yet.")

    def state_dict(self) -> dict[str, Any]:
        return {"best": None if self.best is None else list(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._epoch_start and state_dict["best"] is not None:
            score, epoch = state_dict["best"]
            self.best = float(score), int(epoch)
