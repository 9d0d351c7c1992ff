"""What happens round a training: stopping, checkpoints, results, what is shown and logged.

Each class brings its own module when it is asked for, so that a run loads what it is configured
for. Callbacks take the monitor from the task and the folder from the trainer.
"""

from importlib import import_module
from typing import Any

MODULES = {
    "BestCheckpoint": "checkpoints",
    "Curves": "history",
    "Efficiency": "efficiency",
    "History": "history",
    "LastCheckpoint": "checkpoints",
    "PaperEarlyStopping": "checkpoints",
    "Progress": "progress",
    "RandomState": "random_state",
    "ResultRow": "row",
    "Tables": "tables",
    "WandbLogger": "wandb",
}

__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
