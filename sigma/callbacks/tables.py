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
from rich.text import Text

from sigma.callbacks.history import History, find
from sigma.datamodules.statistics import DatasetStatistics
from sigma.models.base import Model
from sigma.ops import backend_of
from sigma.ranking.metrics import (
    ALL,
    BEYOND,
    METRICS,
    SAMPLED,
    UNSEEN,
    RankingMetrics,
    expected_gains,
    gain_table,
    metric_name,
)
from sigma.runs.files import ROW

log = logging.getLogger(__name__)

AMONG = {ALL: "all items", UNSEEN: "unseen items", SAMPLED: "drawn negatives"}


def show(table: Table) -> None:
    """Print; without a terminal in plain characters and a fixed width."""
    console = rich.get_console()
    if not console.is_terminal:
        table.box = box.ASCII2
        console = Console(width=110, force_terminal=False)
    console.print(table, markup=False, emoji=False)  # names are text: [/x] is no tag


def titled(title: str, *columns: str) -> Table:
    """An empty table; its title is text, which a string would not be."""
    text = Text(title, "table.title")
    return Table(*columns, title=text, title_justify="left", box=box.ROUNDED)


def data_table(data: DatasetStatistics) -> Table:
    """Counts of the data set in one line."""
    cells = {name: f"{getattr(data, name):,}" for name in ("users", "items", "interactions")}
    cells |= {"per user": f"{data.average_length:.1f}", "sparsity": f"{data.sparsity:.2%}"}
    cells |= {part: f"{getattr(data, f'{part}_samples'):,}" for part in ("train", "val", "test")}
    if data.matches is not None:
        cells["expected counts"] = "match" if data.matches else "differ"
    table = titled(f"Data: {data.name}")
    for name in cells:
        table.add_column(name, justify="right")
    table.add_row(*cells.values())
    return table


def result_title(name: str, best: Mapping[str, float], model: Model) -> str:
    """Of the results on a data set, from the best epoch's numbers, if there is one."""
    epoch = f", best epoch {best['epoch']:.0f}" if best else ""
    note = ", by a model that reads the target's time" if model.time == "target" else ""
    return f"Results: {name}{epoch}{note}"


def result_table(title: str, scores: Mapping[str, float], metrics: RankingMetrics) -> Table:
    """By ranking, of all users and by group, from ``val/hr@10``, ``test/unseen/long/hr@10`` …"""
    table = titled(title, "ranked among", "users")
    columns = [(stage, f"{name}@10") for stage in ("val", "test") for name in METRICS]
    for stage, name in columns:
        table.add_column(f"{stage}\n{name.upper()}", justify="right")
    for ranking in metrics.rankings:
        table.add_section()
        for group in ("", *metrics.groups):
            names = [f"{stage}/{metric_name(ranking, group, name)}" for stage, name in columns]
            if not group or any(name in scores for name in names):
                values = [f"{scores[name]:.4f}" if name in scores else "–" for name in names]
                places = ("", group) if group else (AMONG[ranking], "all")
                table.add_row(*places, *values, style="" if group else "bold")
    return table


def beyond(scores: Mapping[str, float], data: DatasetStatistics) -> None:
    """Log what the first ten places of the test hold, and how many targets come again."""
    for ranking in (ALL, UNSEEN):
        coverage, novelty, head = (scores[f"test/{ranking}{name}@10"] for name in BEYOND)
        log.info(
            "First ten among %s: %.1f %% of the items are shown to somebody, %.1f bits of novelty, "
            "%.1f %% of places to the most popular fifth",
            AMONG[ranking],
            *(100 * coverage, novelty, 100 * head),
        )
    log.info(
        "%s of %s test targets are in their history; they are ranked, too",
        f"{data.test_repeats:,}",
        f"{data.test_samples:,}",
    )
    if data.test_cold:
        log.info("%s test targets are of items that training never has", f"{data.test_cold:,}")


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
        best = find(trainer, History).best()
        scores = {n: v for n, v in best.items() if n.startswith("val/")} | task.results["test"]
        title = result_title(data.name, best, task.model)
        show(result_table(title, scores, task.ranking("test")))
        # Among drawn negatives neither the popularity's ranking nor the best one is known.
        if task.sampled is None:
            beyond(scores, data.statistics)
            compare(data, scores["test/hr@10"])
        path = Path(trainer.default_root_dir) / ROW
        if trainer.fast_dev_run:
            log.info("Development run: no checkpoint, row or log is written.")
        elif path.is_file():
            log.info("Result row: %s", path)
