"""Every epoch's numbers, the best of them, and both as files: ``metrics.csv``, ``curves.png``."""

import logging
import re
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import pandas as pd
from lightning.pytorch.callbacks import Callback

from sigma.runs.files import CURVES, EPOCHS, atomic_path

log = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=Callback)
# Okabe and Ito's palette: told apart by colour-blind readers too; markers tell them apart in grey.
STYLES = (("#009E73", "s"), ("#D55E00", "o"), ("#CC79A7", "^"))


def find(trainer: L.Trainer, kind: type[Kind]) -> Kind | None:
    """The trainer's callback of this class, if it has one."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


class History(Callback):
    """``epochs[i]`` holds epoch i's ``epoch``, ``train/loss`` and every ``val/…`` metric.

    Kept through stops, and written as ``metrics.csv`` after each epoch, one line each.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.monitor = ""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.monitor = str(pl_module.monitor)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.epochs.append({"epoch": trainer.current_epoch, **values})
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            frame = pd.DataFrame(self.epochs)
            with atomic_path(Path(trainer.default_root_dir) / EPOCHS) as partial:
                names = [str(name) for name in frame if name != "epoch"]
                frame[["epoch", *sorted(names)]].to_csv(partial, index=False)

    def best(self) -> dict[str, float]:
        """The best epoch, of equals the later; empty before any."""
        scored = [e for e in self.epochs if self.monitor in e]
        return max(scored, key=lambda e: (e[self.monitor], e["epoch"]), default={})

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [dict(e) for e in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = [dict(e) for e in state_dict["epochs"]]


def draw(history: History, path: Path) -> None:
    """The loss, and HR, NDCG and MRR@10 of the validation, with the best epoch marked, as PNG."""
    # No pyplot: it would keep state between the jobs of a multirun and look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    frame, best = pd.DataFrame(history.epochs), history.best()
    names = [str(n) for n in frame if re.fullmatch(r"val/\w*(hr|ndcg|mrr)@10", str(n))]
    every = max(1, len(frame) // 15)
    for at, curves in enumerate((["train/loss"], sorted(names))):
        axes = figure.add_subplot(1, 2, at + 1, title="Validation" if at else "Training loss")
        for name, (colour, marker) in zip(curves, STYLES, strict=False):
            if name in frame:  # a counted model has no loss
                points = frame["epoch"], frame[name]
                axes.plot(*points, color=colour, marker=marker, ms=4, markevery=every, label=name)
        if best:
            text = f"best epoch {best['epoch']:.0f}: {best[history.monitor]:.4f}"
            axes.axvline(best["epoch"], color="grey", linestyle="--", linewidth=1, label=text)
        axes.set(xlabel="epoch")
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")


class Curves(Callback):
    """Draws what ``History`` holds when training ends; a picture never fails a run."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        history, path = find(trainer, History), Path(trainer.default_root_dir) / CURVES
        off = trainer.fast_dev_run or not trainer.is_global_zero  # type: ignore[attr-defined]
        if off or history is None or not history.epochs:
            return
        try:
            draw(history, path)
            log.info("Learning curves: %s", path)
        except Exception as error:
            log.warning("The learning curves could not be drawn: %s", error)
