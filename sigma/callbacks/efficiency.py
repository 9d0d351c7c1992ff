"""Time, samples per second and peak memory of a run, added up over stops and resumes."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from sigma.datamodules.batches import Batch
from sigma.runs.provenance import peak_bytes


class Efficiency(Callback):
    """Measures training (validation apart), evaluation and memory.

    ``report()`` gives seconds, samples per second of training, and bytes. Of a counted model the
    counting is its training.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.train_samples = 0
        self.eval_seconds = 0.0
        self.peak_bytes = 0
        self.sessions = 0
        self._batch_start = self._eval_start = 0.0
        self._fitted = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        if stage == "fit" and self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fitted = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sessions += 1
        self.train_seconds += getattr(pl_module, "count_seconds", 0.0)

    def _now(self) -> float:
        return time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A run resumed within an epoch starts no epoch.
        self._batch_start = self._now()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batch_start = self._now()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, idx: int
    ) -> None:
        now = self._now()
        self.train_seconds += now - self._batch_start
        self.train_samples += batch.num_targets if outputs else 0  # none of a counted model
        self._batch_start = now
        if self._device.type != "cuda":  # which keeps its peak by itself, and tells it slowly
            self._watch_memory()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._device.type == "cuda":  # steps that were launched and have not run yet
            torch.cuda.synchronize(self._device)
            self.train_seconds += self._now() - self._batch_start
        self._eval_start = self._now()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.eval_seconds += self._now() - self._eval_start
        self._watch_memory()

    def _watch_memory(self) -> None:
        self.peak_bytes = max(self.peak_bytes, peak_bytes(self._device))

    def report(self) -> dict[str, float]:
        found = {
            "train_seconds": round(self.train_seconds, 3),
            "eval_seconds": round(self.eval_seconds, 3),
            "peak_memory_bytes": self.peak_bytes,
            "sessions": self.sessions,
        }
        if self.train_samples:
            found["train_samples"] = self.train_samples
            rate = self.train_samples / max(self.train_seconds, 1e-9)
            found["train_samples_per_second"] = round(rate, 1)
        return found

    def state_dict(self) -> dict[str, Any]:
        names = ("train_seconds", "train_samples", "eval_seconds", "peak_bytes", "sessions")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._fitted:  # testing the best checkpoint must not turn the clock back
            for name, value in state_dict.items():
                setattr(self, name, value)
