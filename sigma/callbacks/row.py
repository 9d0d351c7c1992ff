"""The result row of a run, and the ranks of every user beside it."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from torch import Tensor

from sigma.callbacks.efficiency import Efficiency
from sigma.callbacks.history import History, find
from sigma.files import atomic_path
from sigma.ops import backend_of
from sigma.runs.files import ANCESTOR, CHECKOUT, CONFIG, RANKS, ROW
from sigma.runs.identity import SCHEMA
from sigma.runs.provenance import git_state, hardware, versions
from sigma.runs.records import read
from sigma.runs.row import Code, Data, Metrics, Row, Split
from sigma.task import Ranks


def portable_config(folder: Path) -> dict[str, Any]:
    """The run's config, with paths relative to the run's folder and data named without its place,
    but for a custom data set, which has no other name than its path.
    """
    text = (folder / CONFIG).read_text()
    config: dict[str, Any] = json.loads(text.replace(json.dumps(str(folder))[1:-1], "."))
    dataset = config["dataset"]
    for key in ("root",) if dataset.get("name") == "custom" else ("root", "path"):
        place = dataset.get(key)
        if isinstance(place, list):
            dataset[key] = [Path(one).name for one in place]
        elif place is not None:
            dataset[key] = Path(place).name
    if config.get("init_from") is not None:
        config["init_from"] = Path(config["init_from"]).name
    return config


def ancestor_of(folder: Path) -> dict[str, Any] | None:
    """What the run's folder says of the run whose weights it began from."""
    path, advice = folder / ANCESTOR, "delete it, and the row does not name the run's ancestor"
    return read(path, dict[str, Any], advice) if path.is_file() else None


def columns(ranks: Ranks) -> dict[str, Tensor]:
    """What ``ranks.parquet`` holds of a batch, as indices; each (B,)."""
    result = {"user": ranks.users, "target": ranks.targets, "history_length": ranks.history_lengths}
    for name, ranking in ranks.rankings.items():
        prefix = name.replace("/", "_")
        result |= {f"{prefix}greater": ranking.greater, f"{prefix}ties": ranking.ties}
    return result


class ResultRow(L.Callback):
    """Writes ``row.json`` (see ``Row``) and ``ranks.parquet`` when the test has ended.

    ``ranks.parquet`` holds for each test sample: user (raw id), target (raw id), history_length,
    and of each ranking greater and ties: ``greater``, ``unseen_greater`` or ``sampled_greater``.

    Args:
        search: what the row says of the search this run is a trial of; None outside one.
    """

    def __init__(self, search: dict[str, int] | None = None) -> None:
        self.search = search
        self.ranks: list[dict[str, Tensor]] = []

    def on_test_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, *args: Any) -> None:
        self.ranks.append({name: values.cpu() for name, values in columns(outputs).items()})

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        parts: list[Any] = [self.ranks]
        if trainer.world_size > 1:
            parts *= trainer.world_size
            torch.distributed.all_gather_object(parts, self.ranks)
        batches = [batch for part in parts for batch in part]
        ranks = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            with atomic_path(folder / RANKS) as partial:
                self.ranks_frame(trainer, ranks).to_parquet(partial, index=False)
            self.row(trainer, portable_config(folder)).write(folder / ROW)

    def ranks_frame(self, trainer: Any, ranks: dict[str, Tensor]) -> pd.DataFrame:
        """One line a test sample, in the order of users."""
        sequences = trainer.datamodule.sequences
        frame = pd.DataFrame({name: values.numpy() for name, values in ranks.items()})
        frame = frame.sort_values(["user", "history_length"], kind="stable", ignore_index=True)
        frame["user"] = [str(u) for u in sequences.user_ids[frame["user"]]]
        frame["target"] = [str(i) for i in sequences.item_ids[frame["target"] - 1]]
        return frame

    def row(self, trainer: Any, config: dict[str, Any]) -> Row:
        """Everything a table needs to know of this run."""
        history, efficiency = find(trainer, History), find(trainer, Efficiency)
        best, tested = history.best(), trainer.lightning_module.results["test"]
        val: Metrics = {k[4:]: v for k, v in best.items() if k.startswith("val/")}
        test: Metrics = {k[5:]: v for k, v in tested.items()}
        evaluation = "full"
        if sampled := config["evaluation"]["sampled"]:
            evaluation = f"{sampled['number']} {sampled['distribution']} negatives"
        task, data = trainer.lightning_module, trainer.datamodule
        device = trainer.strategy.root_device
        return Row(
            schema=SCHEMA,
            model=config["model"].get("name"),
            dataset=config["dataset"].get("name"),
            seed=config["seed"],
            objective=type(data.objective).__name__,
            evaluation=evaluation,
            metrics=Split(val, test),
            best_epoch=int(best["epoch"]) if best else None,
            epochs=len(history.epochs),
            precision=trainer.precision,  # as trained: on a CPU 16-mixed becomes bf16-mixed
            parameters=sum(p.numel() for p in task.parameters()),
            data=Data(**asdict(data.statistics)),
            efficiency=efficiency.numbers(),
            git=Code(**git_state(CHECKOUT)),
            versions=versions(),
            hardware=hardware(device),
            scan=backend_of(task, device)[0],
            ancestor=ancestor_of(Path(trainer.default_root_dir)),
            search=self.search,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            config=config,
        )
