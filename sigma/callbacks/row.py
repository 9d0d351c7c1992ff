"""The result row: one small JSON file per run, and the ranks of every user beside it."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from sigma.callbacks.efficiency import Efficiency
from sigma.callbacks.history import History
from sigma.errors import UserError
from sigma.ops import backend_of
from sigma.runs.files import atomic_path
from sigma.runs.identity import SCHEMA
from sigma.runs.provenance import git_state, hardware, versions
from sigma.task import Ranks


def evaluation(config: dict[str, Any]) -> str:
    """What targets were ranked among: ``full``, or such as ``1000 uniform negatives``."""
    sampled = config["evaluation"]["sampled"]
    if sampled is None:
        return "full"
    return f"{sampled['number']} {sampled['distribution']} negatives"


def search() -> dict[str, int] | None:
    """The search that this job is a trial of: how many trials it has; None where it is of none."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    trials = OmegaConf.select(HydraConfig.get().sweeper, "n_trials")
    return None if trials is None else {"trials": int(trials)}


class ResultRow(Callback):
    """Writes ``row.json`` and ``ranks.parquet`` into the run's folder when the test has ended.

    The part of the row under ``metrics`` and ``config`` is the same for the same seed, machine and
    commit; ``efficiency`` is what was measured this time. ``ranks.parquet`` holds for each test
    sample: user (raw id), target (raw id), history_length, greater, ties (see ``Ranks``; in sampled
    evaluation sampled_greater and sampled_ties).

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._ranks: list[Ranks] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what Lightning refuses only when the training is done.

        Raises:
            UserError: the share of the test set that is asked for is less than a batch.
        """
        limit = trainer.limit_test_batches
        if not isinstance(limit, float) or limit == 1:  # a number of batches, or the whole set
            return
        batches = len(trainer.datamodule.test_dataloader())  # type: ignore[attr-defined]
        if int(limit * batches) < 1:
            raise UserError(
                f"trainer.limit_test_batches={limit} is less than one batch (the test set has "
                f"{batches}); give a number of them, such as trainer.limit_test_batches=1."
            )

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ranks = []

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        self._ranks.append(Ranks(*(x.cpu() for x in outputs)))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        ranks = Ranks(*(torch.cat(column) for column in zip(*self._ranks, strict=True)))
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, ranks)
            ranks = Ranks(*(torch.cat(column) for column in zip(*parts, strict=True)))
        if not trainer.is_global_zero:
            return
        self._write("ranks.parquet", self.ranks_frame(trainer, ranks))
        self._write("row.json", self.row(trainer))

    def ranks_frame(self, trainer: L.Trainer, ranks: Ranks) -> pd.DataFrame:
        """One line a test sample, in the order of users."""
        sequences = trainer.datamodule.sequences  # type: ignore[attr-defined]
        order = np.lexsort((ranks.history_lengths.numpy(), ranks.users.numpy()))
        task: Any = trainer.lightning_module
        prefix = task.ranking("test").prefix
        return pd.DataFrame(
            {
                "user": [str(u) for u in sequences.user_ids[ranks.users.numpy()[order]]],
                "target": [str(i) for i in sequences.item_ids[ranks.targets.numpy()[order] - 1]],
                "history_length": ranks.history_lengths.numpy()[order],
                f"{prefix}greater": ranks.greater.numpy()[order],
                f"{prefix}ties": ranks.ties.numpy()[order],
            }
        )

    def row(self, trainer: L.Trainer) -> dict[str, Any]:
        """Everything a table needs to know of this run."""
        # Paths within the run's folder are told relative to it: rows travel, folders do not.
        text = (self.folder / "config.json").read_text()
        config = json.loads(text.replace(json.dumps(str(self.folder))[1:-1], "."))
        # So does where data lies; a custom data set's path is its name.
        kept = ("root",) if config["dataset"].get("name") == "custom" else ("root", "path")
        for key in kept:
            if config["dataset"].get(key) is not None:
                config["dataset"][key] = Path(config["dataset"][key]).name
        history = next(c for c in trainer.callbacks if isinstance(c, History))  # type: ignore[attr-defined]
        efficiency = next(c for c in trainer.callbacks if isinstance(c, Efficiency))  # type: ignore[attr-defined]
        best = history.best() or {}
        task = trainer.lightning_module
        return {
            "schema": SCHEMA,
            "model": config["model"].get("name"),
            "dataset": config["dataset"].get("name"),
            "seed": config["seed"],
            "objective": type(trainer.datamodule.objective).__name__,  # type: ignore[attr-defined]
            "evaluation": evaluation(config),
            "metrics": {
                "val": {k[4:]: v for k, v in best.items() if k.startswith("val/")},
                "test": {
                    k[5:]: float(v)
                    for k, v in trainer.callback_metrics.items()
                    if k.startswith("test/")
                },
            },
            "best_epoch": best.get("epoch"),
            "epochs": len(history.epochs),
            # As trained: on a CPU Lightning makes 16-mixed bf16-mixed.
            "precision": trainer.precision,
            "parameters": sum(p.numel() for p in task.parameters()),
            "data": asdict(trainer.datamodule.statistics),  # type: ignore[attr-defined]
            "efficiency": efficiency.report(),
            "git": git_state(Path(__file__).parents[2]),
            "versions": versions(),
            "hardware": hardware(trainer.strategy.root_device),
            "scan": backend_of(task, trainer.strategy.root_device)[0],
            "search": search(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": config,
        }

    def _write(self, name: str, content: dict[str, Any] | pd.DataFrame) -> None:
        """Whole or not at all: a table must never read half a row."""
        with atomic_path(self.folder / name) as partial:
            if isinstance(content, pd.DataFrame):
                content.to_parquet(partial, index=False)
            else:
                partial.write_text(json.dumps(content, indent=1, sort_keys=True))
