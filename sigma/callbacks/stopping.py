"""The paper's stopping rule."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping


class PaperEarlyStopping(EarlyStopping):
    """RecBole's rule: an equal score improves; failure number ``patience`` + 1 stops the run."""

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
