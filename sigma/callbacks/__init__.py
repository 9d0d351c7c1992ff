# ruff: noqa: F401
"""What happens round a training: stopping, checkpoints, results, what is shown and logged."""

from sigma.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, RandomState
from sigma.callbacks.efficiency import Efficiency
from sigma.callbacks.history import Curves, History
from sigma.callbacks.progress import Progress
from sigma.callbacks.row import ResultRow
from sigma.callbacks.stopping import PaperEarlyStopping
from sigma.callbacks.tables import Tables
from sigma.callbacks.wandb import WandbLogger
