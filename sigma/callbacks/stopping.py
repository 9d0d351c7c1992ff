"""The paper's stopping rule."""

from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from sigma.arguments import Number, checked


class PaperEarlyStopping(EarlyStopping):
    """RecBole's rule: an equal score improves; failure number ``patience`` + 1 stops the run.

    Args:
        patience: as above.
        decimals: scores are rounded to so many before they are compared, here and for the best
            checkpoint, as RecBole does to 4; None compares them as they are.
    """

    @checked
    def __init__(self, patience: Number = 10, decimals: Number | None = None) -> None:
        self.decimals = decimals
        super().__init__("", mode="max", patience=patience + 1, check_on_train_epoch_end=False)

    @property
    def monitor_op(self) -> Callable[[Any, Any], bool]:
        """Lightning's own is strict."""
        return lambda score, best: (
            comparable(score, self.decimals) >= comparable(best, self.decimals)
        )

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


def comparable(score: Tensor | float, decimals: int | None) -> float:
    """A score as a rule of so many decimals compares it."""
    return float(score) if decimals is None else round(float(score), decimals)


def decimals_of(trainer: L.Trainer) -> int | None:
    """Those of the run's stopping rule; None if it compares scores as they are."""
    rule = trainer.early_stopping_callback
    return rule.decimals if isinstance(rule, PaperEarlyStopping) else None
