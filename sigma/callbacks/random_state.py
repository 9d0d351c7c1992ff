"""Random generators travel with checkpoints, so a resumed run draws what it would have drawn."""

import random
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class RandomState(Callback):
    """Saves and restores the state of torch, CUDA, NumPy and Python.

    Restored at the first training batch: nothing drawn while the run starts up counts.
    """

    def __init__(self) -> None:
        self.restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, gauss = cast(tuple, np.random.get_state(legacy=True))
        # As plain numbers and tensors: checkpoints load with weights_only=True.
        words = torch.from_numpy(keys.astype(np.int64))
        version, numbers, following = random.getstate()
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "numpy": [str(kind), words, int(position), int(has_gauss), float(gauss)],
            "python": [version, list(numbers), following],
        }
        if torch.cuda.is_available():
            # Of this process's device alone: the next machine may have fewer.
            state["cuda"] = [torch.cuda.get_rng_state()]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.restored is None:
            return
        state, self.restored = self.restored, None
        torch.set_rng_state(state["torch"].cpu())
        kind, words, *others = state["numpy"]
        np.random.set_state((kind, words.cpu().numpy().astype(np.uint32), *others))
        version, numbers, following = state["python"]
        random.setstate((version, tuple(numbers), following))
        if "cuda" in state and torch.cuda.is_available():
            states = state["cuda"]  # older checkpoints hold one for each device there was
            place = min(torch.cuda.current_device(), len(states) - 1)
            torch.cuda.set_rng_state(states[place].cpu())
        if trainer.global_rank:
            # A checkpoint holds the first process's; the others must not draw the same.
            torch.manual_seed(int(torch.randint(2**31, ())) + trainer.global_rank)
