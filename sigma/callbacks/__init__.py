"""What observes and writes; removing any of it leaves the weights unchanged.

Each name brings its own module when it is asked for, so that a run loads what it is configured for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigma.callbacks.checkpoints import BestCheckpoint as BestCheckpoint
    from sigma.callbacks.checkpoints import LastCheckpoint as LastCheckpoint
    from sigma.callbacks.checkpoints import PaperEarlyStopping as PaperEarlyStopping
    from sigma.callbacks.curves import Curves as Curves
    from sigma.callbacks.efficiency import Efficiency as Efficiency
    from sigma.callbacks.history import History as History
    from sigma.callbacks.loggers import EpochCsv as EpochCsv
    from sigma.callbacks.loggers import tensorboard as tensorboard
    from sigma.callbacks.progress import Progress as Progress
    from sigma.callbacks.pruning import Pruning as Pruning
    from sigma.callbacks.random_state import RandomState as RandomState
    from sigma.callbacks.row import ResultRow as ResultRow
    from sigma.callbacks.tables import Tables as Tables
    from sigma.callbacks.wandb import WandbLogger as WandbLogger

MODULES = {
    "BestCheckpoint": "checkpoints",
    "Curves": "curves",
    "Efficiency": "efficiency",
    "EpochCsv": "loggers",
    "History": "history",
    "LastCheckpoint": "checkpoints",
    "PaperEarlyStopping": "checkpoints",
    "Progress": "progress",
    "Pruning": "pruning",
    "RandomState": "random_state",
    "ResultRow": "row",
    "Tables": "tables",
    "WandbLogger": "wandb",
    "tensorboard": "loggers",
}

__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
