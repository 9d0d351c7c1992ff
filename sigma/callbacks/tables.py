"""The data at the start and the results at the end, as tables."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import rich
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from sigma.callbacks.history import History, find
from sigma.datamodules.statistics import DatasetStatistics
from sigma.ops import backend_of
from sigma.ranking.metrics import METRICS, expected_gains, gain_table
from sigma.runs.files import ROW

log = logging.getLogger(__name__)


def show(table: Table) -> None:
    """Print; without a terminal in plain characters and a fixed width."""
    console = rich.get_console()
    if not console.is_terminal:
        table.box = box.ASCII2
        console = Console(width=110, force_terminal=False)
    console.print(table)


def data_table(data: DatasetStatistics) -> Table:
    """Counts of the data set in one line."""
    cells = {name: f"{getattr(data, name):,}" for name in ("users", "items", "interactions")}
    cells |= {"per user": f"{data.average_length:.1f}", "sparsity": f"{data.sparsity:.2%}"}
    cells |= {part: f"{getattr(data, f'{part}_samples'):,}" for part in ("train", "val", "test")}
    if data.matches is not None:
        cells["expected counts"] = "match" if data.matches else "differ"
    table = Table(title=f"Data: {data.name}", title_justify="left", box=box.ROUNDED)
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    return table


def result_table(title: str, scores: Mapping[str, float], prefix: str = "") -> Table:
    """Overall and by group of users, from ``val/hr@10``, ``test/short/hr@10`` and their like."""
    table = Table("users", title=title, title_justify="left", box=box.ROUNDED)
    columns = [(stage, f"{prefix}{name}@10") for stage in ("val", "test") for name in METRICS]
    for stage, name in columns:
        table.add_column(f"{stage}\n{name.replace('_', ' ').upper()}", justify="right")
    for group in dict.fromkeys(name.partition("/")[2].rpartition("/")[0] for name in scores):
        names = [f"{stage}/{group}/{name}".replace("//", "/") for stage, name in columns]
        values = [f"{scores[name]:.4f}" if name in scores else "–" for name in names]
        table.add_row(group or "overall", *values, style="" if group else "bold")
    return table


def popularity_hit_rate(data: Any) -> float:
    """Test HR@10 of ranking all items by how often they occur in training, ties at random."""
    counts = data.item_counts()
    order = counts.sort().values
    popular = counts[torch.from_numpy(data.sequences.items[data.split.test]).long() - 1]
    greater = len(counts) - torch.searchsorted(order, popular, right=True)
    ties = len(counts) - greater - torch.searchsorted(order, popular) - 1
    return float(expected_gains(gain_table("hr", 10), greater, ties).mean())


def compare(data: Any, hit_rate: float) -> None:
    """The test's HR@10 beside what needs no model, and beside the best a simulation allows."""
    if not data.mask_history:  # else popular items of the history are not ranked
        popularity = popularity_hit_rate(data)
        times = f", {hit_rate / popularity:.1f} times as much" if popularity > 0 else ""
        log.info("Test HR@10 %.4f; popularity ranking %.4f%s", hit_rate, popularity, times)
    achievable = getattr(data, "achievable_hit_rate", None)
    if achievable is not None and (limit := achievable(k=10, split="test")):
        share = f"share reached {hit_rate / limit:.1%}"
        log.info("Achievable test HR@10 of this simulation %.4f; %s", limit, share)


class Tables(L.Callback):
    """Shows the data and the model when training starts, and the results when the test ends."""

    def on_fit_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        show(data_table(trainer.datamodule.statistics))
        device = trainer.strategy.root_device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        parameters = sum(p.numel() for p in pl_module.parameters())
        model = type(getattr(pl_module, "model", pl_module)).__name__
        log.info("%s: %s parameters, on %s", model, f"{parameters:,}", where)
        backend, reason = backend_of(pl_module, device)
        if backend is not None:
            log.info("Selective scan: %s (%s)", backend, reason)

    def on_test_end(self, trainer: Any, task: Any) -> None:
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule
        prefix, best = task.ranking("test").prefix, find(trainer, History).best()
        scores = {n: v for n, v in best.items() if n.startswith("val/")}
        scores |= {n: float(v) for n, v in trainer.callback_metrics.items() if n[:5] == "test/"}
        title = f"Results: {data.name}" + (f", best epoch {best['epoch']:.0f}" if best else "")
        if prefix:
            title += f", sampled evaluation: {task.sampled.number} negatives a target"
        show(result_table(title, scores, prefix))
        # Among drawn negatives neither the popularity's ranking nor the best one is known.
        if not prefix:
            compare(data, scores["test/hr@10"])
        path = Path(trainer.default_root_dir) / ROW
        if trainer.fast_dev_run:
            log.info("Development run: no checkpoint, row or log is written.")
        elif path.is_file():
            log.info("Result row: %s", path)
