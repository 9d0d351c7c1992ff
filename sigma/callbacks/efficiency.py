"""Time, samples per second and peak memory of a run, added up over stops and resumes."""

import time
from typing import Any

import lightning as L
import torch

from sigma.datamodules.batches import Batch
from sigma.runs.provenance import peak_bytes

STATE = ("train_seconds", "train_samples", "eval_seconds", "peak_bytes", "sessions")


class Efficiency(L.Callback):
    """Training (of a counted model the counting), evaluation, and memory."""

    def __init__(self) -> None:
        self.train_seconds = self.eval_seconds = 0.0
        self.train_samples = self.peak_bytes = self.sessions = 0
        self.since = 0.0  # when what is measured now began

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self.since = self.since, time.perf_counter()
        return self.since - before

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.device = trainer.strategy.root_device
        if stage == "fit" and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sessions += 1
        self.train_seconds += getattr(pl_module, "count_seconds", 0.0)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.lap()

    on_train_start = on_train_epoch_start  # a run resumed within an epoch starts no epoch

    def on_train_batch_end(
        self, trainer: L.Trainer, task: Any, outputs: Any, batch: Batch, index: int
    ) -> None:
        self.train_seconds += self.lap()
        self.train_samples += batch.num_targets if outputs else 0  # none of a counted model
        if self.device.type != "cuda":  # which keeps its peak by itself, and tells it slowly
            self.peak_bytes = max(self.peak_bytes, peak_bytes(self.device))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.device.type == "cuda":  # steps that were launched and have not run yet
            torch.cuda.synchronize(self.device)
            self.train_seconds += self.lap()
        self.lap()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.eval_seconds += self.lap()
        self.peak_bytes = max(self.peak_bytes, peak_bytes(self.device))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.limit_val_batches == 0:  # what is measured round a validation
            self.on_validation_start(trainer, pl_module)
            self.on_validation_end(trainer, pl_module)

    def numbers(self) -> dict[str, float]:
        """Seconds, bytes, and samples per second of training, as a result row has them."""
        values = {n: round(getattr(self, n), 3) for n in ("train_seconds", "eval_seconds")}
        values |= {"peak_memory_bytes": self.peak_bytes, "sessions": self.sessions}
        if self.train_samples:
            values["train_samples"] = self.train_samples
            rate = self.train_samples / max(self.train_seconds, 1e-9)
            values["train_samples_per_second"] = round(rate, 1)
        return values

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)
