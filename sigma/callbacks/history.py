"""Every epoch's numbers, kept through stops: for the result row, curves and tables."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class History(Callback):
    """``epochs[i]`` holds epoch i's ``epoch``, ``train/loss`` and every ``val/…`` metric.

    Args:
        monitor: metric that chooses the best epoch, the larger the better.
    """

    def __init__(self, monitor: str = "val/ndcg@10") -> None:
        self.monitor = monitor
        self.epochs: list[dict[str, float]] = []
        self._fitted = False

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fitted = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("train/", "val/"))
        }
        self.epochs.append({"epoch": trainer.current_epoch, **values})

    def best(self) -> dict[str, float] | None:
        """The best epoch (the later of equals), or None before any."""
        valid = [e for e in self.epochs if self.monitor in e]
        return max(valid, key=lambda e: (e[self.monitor], e["epoch"]), default=None)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [dict(e) for e in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Testing the best checkpoint must not take the numbers back to that epoch.
        if not self._fitted:
            self.epochs = [dict(e) for e in state_dict["epochs"]]
