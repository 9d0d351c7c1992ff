"""The data at the start and the results at the end, as tables."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import rich
import torch
from lightning.pytorch.callbacks import Callback
from rich import box
from rich.console import Console
from rich.table import Table

from sigma.callbacks.history import History
from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.statistics import DatasetStatistics
from sigma.ops import backend_of
from sigma.ranking.popularity import popularity_metrics

log = logging.getLogger(__name__)

SHOWN = ("hr@10", "ndcg@10", "mrr@10")


def show(table: Table) -> None:
    """Print to standard output; without a terminal in plain characters and a fixed width."""
    console = rich.get_console()
    if not console.is_terminal:
        table.box = box.ASCII2
        console = Console(width=110, force_terminal=False)
    if table.title is not None:
        # Its own line: rich would pad a title to the table's width.
        console.print(table.title, style="bold", highlight=False)
        table.title = None
    console.print(table)


def data_table(data: DatasetStatistics) -> Table:
    """Counts of the data set in one line."""
    table = Table(title=f"Data: {data.name}", box=box.ROUNDED)
    columns = {
        "users": f"{data.users:,}",
        "items": f"{data.items:,}",
        "interactions": f"{data.interactions:,}",
        "per user": f"{data.average_length:.1f}",
        "sparsity": f"{data.sparsity:.2%}",
        "train": f"{data.train_samples:,}",
        "val": f"{data.val_samples:,}",
        "test": f"{data.test_samples:,}",
    }
    if data.matches is not None:
        columns["expected counts"] = "match" if data.matches else "differ"
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row(*columns.values())
    return table


def result_table(
    title: str,
    samples: dict[str, int],
    val: dict[str, float],
    test: dict[str, float],
    popularity: dict[str, float],
    metric_prefix: str = "",
) -> Table:
    """Overall and by group: metrics of the best validation, of the test, and of popularity.

    Args:
        title: above the table.
        samples: row name -> test samples; ``overall`` and the groups.
        val: ``hr@10``, ``short/hr@10`` … of the best epoch.
        test: the same of the test.
        popularity: the same of the popularity ranking's test, among all items.
        metric_prefix: of the names in ``val`` and ``test``, such as ``sampled_``.
    """
    table = Table(title=title, box=box.ROUNDED)
    table.add_column("users")
    table.add_column("n test", justify="right")
    for stage in ("val", "test"):
        for name in SHOWN:
            kind = f"{stage} {metric_prefix.rstrip('_')}".rstrip()
            table.add_column(f"{kind}\n{name.upper()}", justify="right")
    table.add_column("popularity\ntest HR@10", justify="right")
    for row, count in samples.items():
        prefix = "" if row == "overall" else f"{row}/"
        values = [
            found.get(prefix + metric_prefix + name) for found in (val, test) for name in SHOWN
        ]
        values.append(popularity.get(prefix + "hr@10"))
        cells = ["–" if v is None else f"{v:.4f}" for v in values]
        table.add_row(row, f"{count:,}", *cells, style="bold" if row == "overall" else "")
    return table


class Tables(Callback):
    """Shows the data and the model when training starts, and the results when the test ends.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data: SequenceDataModule = trainer.datamodule  # type: ignore[attr-defined]
        show(data_table(data.statistics))
        device = trainer.strategy.root_device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        parameters = sum(p.numel() for p in pl_module.parameters())
        model = type(getattr(pl_module, "model", pl_module)).__name__
        log.info("%s: %s parameters, on %s", model, f"{parameters:,}", where)
        backend, reason = backend_of(pl_module, device)
        if backend is not None:
            log.info("Selective scan: %s (%s)", backend, reason)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data: SequenceDataModule = trainer.datamodule  # type: ignore[attr-defined]
        metric: Any = pl_module.metrics["test"]  # type: ignore[index]
        history = next(
            (c for c in trainer.callbacks if isinstance(c, History)),  # type: ignore[attr-defined]
            None,
        )
        best = (history.best() if history else None) or {}
        val = {k[4:]: v for k, v in best.items() if k.startswith("val/")}
        test = {
            k[5:]: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")
        }
        # Among drawn negatives neither the popularity ranking nor the best possible is known.
        full = not metric.prefix
        popularity = popularity_metrics(data, "test", groups=metric.groups) if full else {}
        epoch = f", best epoch {best['epoch']:.0f}" if "epoch" in best else ""
        counts = self._counts(data, metric.groups)
        title = f"Results: {data.name}{epoch}"
        if not full:
            task: Any = pl_module
            title += f", sampled evaluation: {task.sampled.number} negatives a target"
        show(result_table(title, counts, val, test, popularity, metric.prefix))
        if full:
            self._summary(data, test, popularity)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.info(
                "Development run: %s batch(es) of training, validation and test; no checkpoint, "
                "row or log was written.",
                trainer.num_training_batches,
            )
        elif (self.folder / "row.json").is_file():
            log.info("Result row: %s", self.folder / "row.json")

    @staticmethod
    def _counts(data: SequenceDataModule, groups: dict[str, Any]) -> dict[str, int]:
        """Test samples overall and by group."""
        assert data.split is not None
        assert data.sequences is not None
        offsets, positions = data.sequences.offsets, data.split.test
        lengths = positions - offsets[np.searchsorted(offsets, positions, side="right") - 1]
        counts = {"overall": len(lengths)}
        for name, (lower, upper) in groups.items():
            inside = lengths >= (lower or 0)
            counts[name] = int((inside if upper is None else inside & (lengths < upper)).sum())
        return {name: count for name, count in counts.items() if count}

    @staticmethod
    def _summary(
        data: SequenceDataModule, test: dict[str, float], popularity: dict[str, float]
    ) -> None:
        hit_rate = test.get("hr@10")
        if hit_rate is None:
            return
        ranking = popularity["hr@10"]
        times = f", {hit_rate / ranking:.1f} times as much" if ranking > 0 else ""
        log.info("Test HR@10 %.4f; popularity ranking %.4f%s", hit_rate, ranking, times)
        achievable = getattr(data, "achievable_hit_rate", None)
        best = achievable(k=10, split="test") if achievable is not None else None
        if best:
            log.info(
                "Achievable test HR@10 of this simulation %.4f; share reached %.1f %%",
                best,
                100 * hit_rate / best,
            )
