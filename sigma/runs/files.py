"""The files of a run's folder and of the checkout by name."""

from pathlib import Path

ROW = "row.json"  # the result, see ``sigma.runs.row``; a run that has it is finished
RANKS = "ranks.parquet"  # the target's rank of every test user
CONFIG = "config.json"  # the resolved config
COMMAND = "command.json"  # what was typed, and on which data; Hydra's own copy is of the last start
EPOCHS = "metrics.csv"
CURVES = "curves.png"
BEST = "checkpoints/best.ckpt"
LAST = "checkpoints/last.ckpt"
WANDB = "wandb.json"  # which W&B run this is
FAILURE = "failed.json"  # why a job of a sweep failed; the next start removes it
LOCK = ".lock"

# The package runs from a checkout, which has beside it:
CHECKOUT = Path(__file__).parents[2]
CONF = CHECKOUT / "conf"
SCRIPT = CHECKOUT / "train.py"
