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
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, gauss = cast(tuple, np.random.get_state(legacy=True))
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            # As plain numbers and tensors: checkpoints load with weights_only=True.
            "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), int(position),
                      int(has_gauss), float(gauss)],
            "python": list(map(list_of, random.getstate())),
        }  # fmt: skip
        if torch.cuda.is_available():
            # Of this process's device alone: the next machine may have fewer.
            state["cuda"] = [torch.cuda.get_rng_state()]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        torch.set_rng_state(state["torch"].cpu())
        kind, keys, position, has_gauss, gauss = state["numpy"]
        np.random.set_state(
            (kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss)
        )
        version, numbers, following = state["python"]
        random.setstate((version, tuple(numbers), following))
        if "cuda" in state and torch.cuda.is_available():
            states = state["cuda"]  # older checkpoints hold one for each device there was
            own = min(torch.cuda.current_device(), len(states) - 1)
            torch.cuda.set_rng_state(states[own].cpu())
        if trainer.global_rank:
            # A checkpoint holds the first process's; the others must not draw the same.
            torch.manual_seed(int(torch.randint(2**31, ())) + trainer.global_rank)


def list_of(value: Any) -> Any:
    """Tuples as lists; everything else as it is."""
    return list(value) if isinstance(value, tuple) else value
