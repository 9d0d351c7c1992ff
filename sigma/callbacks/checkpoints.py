"""The best checkpoint, and what a run goes on from after a stop."""

import logging
import random
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from sigma.callbacks.stopping import comparable, decimals_of
from sigma.checkpoints import expect_intact
from sigma.runs.files import BEST, LAST

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """The best epoch's weights; of equal scores the later one, as in RecBole."""

    def __init__(self) -> None:
        super().__init__(mode="max", enable_version_counter=False, save_on_train_epoch_end=False)
        self.filename = Path(BEST).stem

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.monitor = str(pl_module.monitor)
        self.dirpath = str((Path(trainer.default_root_dir) / BEST).parent)
        super().setup(trainer, pl_module, stage)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where nothing was validated, the last weights are what is tested."""
        if not (self.best_model_path or trainer.fast_dev_run):  # type: ignore[attr-defined]
            self.best_model_path = f"{self.dirpath}/{Path(BEST).name}"
            trainer.save_checkpoint(self.best_model_path, weights_only=False)

    def on_load_checkpoint(self, trainer: L.Trainer, task: Any, checkpoint: dict[str, Any]) -> None:
        """The test takes the best epoch's weights; the callbacks still know all epochs."""
        if trainer.state.fn != TrainerFn.FITTING:
            checkpoint["callbacks"].clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was, in this folder: of a run that has moved Lightning would test the old file.

        Raises:
            UserError: the file is missing or damaged, and no later epoch may be better.
        """
        path, best = "", {}
        if state_dict["best_model_path"]:
            path = f"{self.dirpath}/{Path(BEST).name}"
            expect_intact(Path(path))
            best = {path: state_dict["best_model_score"]}
        # All of them: Lightning deletes what it takes for the best one of before.
        paths = {"best_model_path": path, "kth_best_model_path": path, "last_model_path": ""}
        super().load_state_dict(
            {**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath}
        )

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether a score is the best so far; the score is the same in all processes."""
        if current is not None and self.best_model_score is not None:
            decimals = decimals_of(trainer)
            return comparable(current, decimals) >= comparable(self.best_model_score, decimals)
        return super().check_monitor_top_k(trainer, current)


class LastCheckpoint(L.Callback):
    """``last.ckpt``, replaced in one step at each epoch's end and every so many seconds within one.

    A run killed at any moment has the older or the newer file, complete and of finite weights.
    Lightning's ``ModelCheckpoint`` would save while gradients wait for their step, too.
    """

    def __init__(self, every_seconds: float = 60.0) -> None:
        self.every_seconds = every_seconds
        self.saved_at = time.monotonic()

    def save(self, trainer: L.Trainer) -> None:
        """Replace the file, unless the weights are broken."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = Path(trainer.default_root_dir) / LAST
        finite = all(bool(p.isfinite().all()) for p in trainer.lightning_module.parameters())
        self.saved_at = time.monotonic()
        if not trainer.strategy.reduce_boolean_decision(finite):
            log.warning("The weights are not finite any more; %s is not replaced.", path)
            return
        trainer.save_checkpoint(path, weights_only=False)
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        # Gradients that wait for their step (trainer.accumulate_grad_batches) are in no checkpoint.
        # The last batch of an epoch is left to the epoch's end, after validation.
        batches = trainer.fit_loop.batch_idx + 1
        if batches % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return
        due = time.monotonic() - self.saved_at >= self.every_seconds
        if trainer.strategy.broadcast(due):  # clocks differ, and processes save together
            self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)


class RandomState(L.Callback):
    """The random generators: a resumed run draws what it would have drawn. They are restored at the
    first training batch, so that nothing drawn while the run starts up counts.
    """

    def __init__(self) -> None:
        self.restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        kind, keys, *others = cast(tuple, np.random.get_state(legacy=True))
        # As plain numbers and tensors: checkpoints load with weights_only=True.
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *others],
            "python": random.getstate(),
        }
        if torch.cuda.is_available():
            state["cuda"] = [torch.cuda.get_rng_state()]  # the next machine may have fewer devices
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self.restored is None:
            return
        state, self.restored = self.restored, None
        torch.set_rng_state(state["torch"].cpu())
        kind, words, *others = state["numpy"]
        np.random.set_state((kind, words.cpu().numpy().astype(np.uint32), *others))
        version, numbers, following = state["python"]
        random.setstate((version, tuple(numbers), following))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"][0].cpu())
        if trainer.global_rank:
            # A checkpoint holds the first process's; the others must not draw the same.
            torch.manual_seed(int(torch.randint(2**31, ())) + trainer.global_rank)
