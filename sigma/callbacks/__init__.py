"""What observes and writes; removing any of it leaves the weights unchanged."""

from sigma.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, PaperEarlyStopping
from sigma.callbacks.curves import Curves
from sigma.callbacks.efficiency import Efficiency
from sigma.callbacks.history import History
from sigma.callbacks.loggers import EpochCsv, tensorboard
from sigma.callbacks.progress import Progress
from sigma.callbacks.pruning import Pruning
from sigma.callbacks.random_state import RandomState
from sigma.callbacks.row import ResultRow
from sigma.callbacks.tables import Tables
from sigma.callbacks.wandb import WandbLogger

__all__ = [
    "BestCheckpoint",
    "Curves",
    "Efficiency",
    "EpochCsv",
    "History",
    "LastCheckpoint",
    "PaperEarlyStopping",
    "Progress",
    "Pruning",
    "RandomState",
    "ResultRow",
    "Tables",
    "WandbLogger",
    "tensorboard",
]
