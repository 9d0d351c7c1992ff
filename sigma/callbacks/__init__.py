"""What observes and writes; removing any of it leaves the weights unchanged."""

from sigma.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, PaperEarlyStopping
from sigma.callbacks.efficiency import Efficiency
from sigma.callbacks.history import History
from sigma.callbacks.random_state import RandomState
from sigma.callbacks.row import ResultRow

__all__ = [
    "BestCheckpoint",
    "Efficiency",
    "History",
    "LastCheckpoint",
    "PaperEarlyStopping",
    "RandomState",
    "ResultRow",
]
