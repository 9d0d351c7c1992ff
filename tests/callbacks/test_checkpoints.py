"""The last checkpoint: saved where a run can go on from, of weights that can, or not at all."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sigma.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from sigma.callbacks.history import History
from sigma.callbacks.stopping import PaperEarlyStopping
from sigma.checkpoints import CheckpointFiles
from sigma.runs.files import BEST, LAST
from tests.runs.front_door import Logged


class Line(L.LightningModule):
    """A line through ten points, with scores of its own; its weights may break in an epoch."""

    monitor = "val/score"

    def __init__(self, breaks_in: int | None = None, scores: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.breaks_in, self.scores = breaks_in, scores

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.layer(batch[0]) - 1).square().mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.current_epoch == self.breaks_in and batch_idx == 9:
            self.layer.weight.data.fill_(float("nan"))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        if self.scores:
            self.results = {"val": {"val/score": self.scores[self.current_epoch]}}
            self.log("val/score", self.scores[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Noted(LastCheckpoint):
    """Notes after how many batches of the epoch it saves."""

    def __init__(self, every_seconds: float) -> None:
        super().__init__(every_seconds)
        self.saves: list[int] = []

    def save(self, trainer: L.Trainer) -> None:
        self.saves.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        super().save(trainer)


def fit(folder: Path, callbacks: list[L.Callback], module: Line, **settings: Any) -> L.Trainer:
    settings |= {"accelerator": "cpu", "devices": 1, "logger": False, "num_sanity_val_steps": 0}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"enable_checkpointing": bool(module.scores)}
    trainer = L.Trainer(callbacks=callbacks, default_root_dir=folder, **settings)
    trainer.strategy.checkpoint_io = CheckpointFiles(module)
    points = DataLoader(TensorDataset(torch.linspace(-1, 1, 10)[:, None]))
    trainer.fit(module, points, points if module.scores else None)
    return trainer


@pytest.mark.parametrize(
    ("accumulated", "expected"), [(4, [4, 8, 10]), (1, list(range(1, 11))), (20, [10])]
)
def test_saved_only_while_no_gradients_wait(
    accumulated: int, expected: list[int], tmp_path: Path
) -> None:
    callback = Noted(0.0)
    fit(tmp_path, [callback], Line(), max_epochs=1, accumulate_grad_batches=accumulated)
    assert callback.saves == expected


def test_good_weights_are_not_replaced_by_broken_ones(tmp_path: Path, caplog: Logged) -> None:
    fit(tmp_path, [LastCheckpoint()], Line(breaks_in=1), max_epochs=2)
    saved = torch.load(tmp_path / LAST, weights_only=True)
    assert saved["epoch"] == 0
    assert all(weight.isfinite().all() for weight in saved["state_dict"].values())
    assert str(tmp_path / LAST) in caplog.text


@pytest.mark.parametrize(
    ("patience", "epochs"),
    [(1, 5), (0, 4), (9, 6)],  # the second 0.3 equals the first, so it counts as better
)
def test_of_equal_scores_the_later_is_the_best(patience: int, epochs: int, tmp_path: Path) -> None:
    module = Line(scores=(0.1, 0.3, 0.3, 0.2, 0.1, 0.0, 0.0))
    callbacks = [PaperEarlyStopping(patience), BestCheckpoint()]
    trainer = fit(tmp_path, callbacks, module, max_epochs=6)
    assert trainer.current_epoch == epochs
    best = torch.load(tmp_path / BEST, weights_only=True)
    assert best["epoch"] == 2
    assert trainer.checkpoint_callback.best_model_score == pytest.approx(0.3)
    # By the names that checkpoints of earlier versions know them by.
    names = {key.partition("{")[0] for key in best["callbacks"]}
    assert names == {"PaperEarlyStopping", "BestCheckpoint"}


@pytest.mark.parametrize(("decimals", "best"), [(None, 1), (4, 3), (0, 4)])
def test_scores_are_rounded_before_they_are_compared(
    decimals: int | None, best: int, tmp_path: Path
) -> None:
    """To four decimals 0.30004, 0.3 and 0.29996 are equal, so the latest is kept and goes on."""
    module = Line(scores=(0.1, 0.30004, 0.3, 0.29996, 0.29994, 1.0))
    history, stopping = History(), PaperEarlyStopping(10, decimals)
    trainer = fit(tmp_path, [history, stopping, BestCheckpoint()], module, max_epochs=5)
    assert torch.load(tmp_path / BEST, weights_only=True)["epoch"] == best
    assert history.best()["epoch"] == best
    assert history.best()["val/score"] == pytest.approx(module.scores[best], abs=1e-7)
    assert trainer.early_stopping_callback is stopping
    assert stopping.wait_count == 4 - best
