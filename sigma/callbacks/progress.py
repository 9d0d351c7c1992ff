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
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sigma.callbacks.efficiency import Efficiency
from sigma.callbacks.history import History, find
from sigma.errors import UserError
from sigma.runs.files import LAST

log = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """``0.4 s``, ``41 s`` or ``1:02:03``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else str(timedelta(seconds=round(seconds)))


class Progress(RichProgressBar):
    """Lightning's rich bar on a terminal, and everywhere a line that stays for each epoch."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=4, theme=RichProgressBarTheme(metrics_format=".4f"))
        self.before = (0.0, 0, 0.0)  # what ``counts`` was when this epoch began
        self.entire = False  # whether it began in this process
        if not rich.get_console().is_terminal:
            self.disable()

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return trainer.progress_bar_metrics  # without the loggers' version

    def counts(self, trainer: L.Trainer) -> tuple[float, int, float]:
        """The clock, and samples and seconds of training so far."""
        efficiency = find(trainer, Efficiency)
        return time.monotonic(), efficiency.train_samples, efficiency.train_seconds

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.before = self.counts(trainer)  # a run resumed within an epoch starts no epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.before, self.entire = self.counts(trainer), True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """``epoch   3  loss 5.1  val/ndcg@10 0.03*  best …  4.1 s  900 samples/s  at most … left``,
        the star where the epoch is the best so far.
        """
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        now = self.counts(trainer)
        seconds, samples, spent = (a - b for a, b in zip(now, self.before, strict=True))
        metrics, epoch = trainer.callback_metrics, trainer.current_epoch
        history = find(trainer, History)
        parts = [f"epoch {epoch:>3}"]
        if "train/loss" in metrics:
            parts.append(f"loss {float(metrics['train/loss']):.4f}")
        if best := history.best():
            name, star = history.monitor, "*" if best["epoch"] == epoch else " "
            parts.append(f"{name} {float(metrics[name]):.4f}{star}")
            parts.append(f"best {best[name]:.4f} (epoch {best['epoch']:.0f})")
        parts.append(duration(seconds))
        if samples:
            parts.append(f"{samples / max(spent, 1e-9):,.0f} samples/s")
        left = (trainer.max_epochs or 0) - epoch - 1
        if left > 0 and self.entire:
            parts.append(f"at most {duration(seconds * left)} left")
        log.info("  ".join(parts))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        stopping = trainer.early_stopping_callback
        if trainer.is_global_zero and stopping is not None and stopping.stopped_epoch:
            failed = stopping.monitor, stopping.wait_count
            log.info("Stopped early: %s has not improved for %d epochs.", *failed)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_test_end(trainer, pl_module)
        # The results follow; a live bar would be drawn again below each of their lines.
        self.teardown(trainer, pl_module, "test")

    def on_exception(self, trainer: L.Trainer, task: Any, exception: BaseException) -> None:
        """Say what is kept and how to go on; ``sigma.runs.messages`` shows it below the error."""
        super().on_exception(trainer, task, exception)
        folder = Path(trainer.default_root_dir)
        if isinstance(exception, UserError) and "loss became" in str(exception):
            # From the same checkpoint the same settings come to the same loss.
            exception.add_note(
                "Resuming would end the same way: start again in a new folder (hydra.run.dir=…), "
                "with a lower task.optimizer.lr."
            )
        elif isinstance(exception, UserError):
            return  # says what to do, and what it says of would end the same way
        elif (folder / LAST).is_file():  # this run's: a folder that held another's was refused
            resume = f"python train.py resume={shlex.quote(str(folder))}"
            exception.add_note(f"The last checkpoint is kept; go on with: {resume}")
        elif isinstance(exception, KeyboardInterrupt | SIGTERMException):
            exception.add_note("There is no checkpoint to go on from yet.")
