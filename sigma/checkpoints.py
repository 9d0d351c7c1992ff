"""Checkpoints as files: written whole or not at all, and read only as they were written."""

import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from sigma.errors import UserError
from sigma.files import atomic_path
from sigma.runs.files import anew, damage

PARTS = ("epoch", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers")


def expect_intact(path: Path) -> None:
    """See that a run's checkpoint is as it was written.

    Raises:
        UserError: it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {anew(path)}.")
    if reason := damage(path):
        raise UserError(f"{path} is damaged ({reason}); {anew(path)}.")


def read(path: Path) -> dict[str, Any]:
    """The content of a run's checkpoint, on the CPU.

    Raises:
        UserError: it is missing, damaged or no checkpoint.
    """
    expect_intact(path)
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        hint = ""
        if isinstance(error, pickle.UnpicklingError):  # written so
            hint = " and may hold code, of which none is run; if the folder is your own"
        raise UserError(f"{path} is no checkpoint of a run{hint}; {anew(path)}.") from error
    return content


def load(path: Path, task: nn.Module) -> dict[str, Any]:
    """The same, and the task has its weights.

    Raises:
        UserError: see ``read``, or it is of another model.
    """
    content = read(path)
    try:
        task.load_state_dict(content["state_dict"])
    except Exception as error:  # what is of another run fails in many ways
        raise UserError(f"{path} does not fit the model of its run; {anew(path)}.") from error
    return content


class CheckpointFiles(TorchCheckpointIO):
    """How a trainer writes and reads the checkpoints of a task.

    Lightning's own writes to the system's temporary folder: from there to another disk it is
    copied, which may stop half-way, and nothing is synced.
    """

    def __init__(self, task: nn.Module) -> None:
        self.task = task

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with atomic_path(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        """As ``load``; of plain numbers and tensors alone, whatever the options."""
        content = load(Path(path), self.task)
        if missing := [part for part in PARTS if part not in content]:
            raise UserError(f"{path} lacks {', '.join(missing)}; {anew(Path(path))}.")
        return content
