"""Time, samples per second and peak memory of a run, added up over stops and resumes."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from sigma.datamodules.batches import Batch
from sigma.runs.provenance import peak_bytes

STATE = ("train_seconds", "train_samples", "eval_seconds", "peak_bytes", "sessions")


class Efficiency(Callback):
    """Measures training (validation apart), evaluation and memory.

    Of a counted model the counting is its training. Lightning's ``Timer`` would count saving and
    drawing as training, and neither waits for the device nor counts samples.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.train_samples = 0
        self.eval_seconds = 0.0
        self.peak_bytes = 0
        self.sessions = 0
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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.lap()  # a run resumed within an epoch starts no epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.lap()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, idx: int
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

    def numbers(self) -> dict[str, float]:
        """Seconds, bytes, and samples per second of training, as a result row has them."""
        values = {
            "train_seconds": round(self.train_seconds, 3),
            "eval_seconds": round(self.eval_seconds, 3),
            "peak_memory_bytes": self.peak_bytes,
            "sessions": self.sessions,
        }
        if self.train_samples:
            values["train_samples"] = self.train_samples
            rate = self.train_samples / max(self.train_seconds, 1e-9)
            values["train_samples_per_second"] = round(rate, 1)
        return values

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state_dict[name])
