"""The last checkpoint: saved where a run can go on from, of weights that can, or not at all."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sigma.callbacks.checkpoints import LastCheckpoint


class Line(L.LightningModule):
    """A line through ten points; its weights break with the last step of an epoch, if told to."""

    def __init__(self, breaks_in: int | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.breaks_in = breaks_in

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.layer(batch[0]) - 1).square().mean()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.current_epoch == self.breaks_in and batch_idx == 9:
            self.layer.weight.data.fill_(float("nan"))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Noted(LastCheckpoint):
    """Notes after how many batches of the epoch it saves."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.saves: list[int] = []

    def _save(self, trainer: L.Trainer) -> None:
        self.saves.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        super()._save(trainer)


def fit(callback: LastCheckpoint, module: Line, **settings: Any) -> None:
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[callback], **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(torch.linspace(-1, 1, 10)[:, None])))


@pytest.mark.parametrize(
    ("accumulated", "expected"), [(4, [4, 8, 10]), (1, list(range(1, 11))), (20, [10])]
)
def test_saved_only_while_no_gradients_wait(
    accumulated: int, expected: list[int], tmp_path: Path
) -> None:
    callback = Noted(str(tmp_path), 0.0)
    fit(callback, Line(), max_epochs=1, accumulate_grad_batches=accumulated)
    assert callback.saves == expected


def test_good_weights_are_not_replaced_by_broken_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(LastCheckpoint(str(tmp_path)), Line(breaks_in=1), max_epochs=2)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(weight.isfinite().all() for weight in kept["state_dict"].values())
    assert f"{tmp_path / 'last.ckpt'} is not replaced" in caplog.text


def test_a_full_disk_is_not_kept_full(tmp_path: Path) -> None:
    def save_checkpoint(path: Path, weights_only: bool) -> None:
        path.write_bytes(b"a part of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "last.ckpt").write_bytes(b"older")
    trainer: Any = SimpleNamespace(
        fast_dev_run=False, is_global_zero=True, save_checkpoint=save_checkpoint,
        lightning_module=Line(), strategy=SimpleNamespace(reduce_boolean_decision=bool),
    )  # fmt: skip
    with pytest.raises(OSError, match="No space left"):
        LastCheckpoint(str(tmp_path)).on_train_epoch_end(trainer, trainer.lightning_module)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert (tmp_path / "last.ckpt").read_bytes() == b"older"
