"""Every epoch's numbers, the best of them, and both as files: ``metrics.csv``, ``curves.png``."""

import logging
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import pandas as pd

from sigma.callbacks.stopping import comparable, decimals_of
from sigma.files import atomic_path
from sigma.ranking.metrics import UNSEEN
from sigma.runs.files import CURVES, EPOCHS

log = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=L.Callback)


def find(trainer: L.Trainer, kind: type[Kind]) -> Kind:
    """The trainer's callback of this class; ``sigma.runs.check`` sees that it has one."""
    return next(c for c in trainer.callbacks if isinstance(c, kind))  # type: ignore[attr-defined]


class History(L.Callback):
    """``epochs[i]`` holds epoch i's ``epoch``, ``train/loss`` and every ``val/…`` metric."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.monitor = ""
        self.decimals: int | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.monitor = str(pl_module.monitor)
        self.decimals = decimals_of(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values = logged | pl_module.results.get("val", {})  # type: ignore[operator, union-attr]
        self.epochs.append({"epoch": trainer.current_epoch, **values})
        self.write(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Again, as what a killed run wrote may not be what its checkpoint holds."""
        if self.epochs:
            self.write(trainer)

    def write(self, trainer: L.Trainer) -> None:
        """All epochs as ``metrics.csv``."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            frame = pd.DataFrame(self.epochs).set_index("epoch").sort_index(axis="columns")
            with atomic_path(Path(trainer.default_root_dir) / EPOCHS) as partial:
                frame.to_csv(partial)

    def best(self) -> dict[str, float]:
        """The best epoch, of equals the later; empty before any."""
        scored = [e for e in self.epochs if self.monitor in e]
        return max(
            scored,
            key=lambda e: (comparable(e[self.monitor], self.decimals), e["epoch"]),
            default={},
        )

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = state_dict["epochs"]


def draw(history: History, path: Path) -> None:
    """Loss, and HR, NDCG and MRR@10 of the validation by ranking, with the best epoch marked."""
    # No pyplot: it would keep state between the jobs of a multirun and look for a display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(dpi=120, layout="constrained")
    frame, best = pd.DataFrame(history.epochs).set_index("epoch"), history.best()
    metric = r"(sampled_)?(hr|ndcg|mrr)@10$"
    panels = {"Training loss": "^train/loss$", "Validation": f"^val/{metric}"}
    if any(name.startswith(f"val/{UNSEEN}") for name in history.epochs[0]):
        panels["Validation among unseen items"] = f"^val/{UNSEEN}{metric}"
    panels = {title: n for title, n in panels.items() if len(frame.filter(regex=n).columns)}
    figure.set_size_inches(5 * len(panels), 4)
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, names) in zip(places, panels.items(), strict=True):
        curves = frame.filter(regex=names).sort_index(axis="columns")
        # Readable in grey, too.
        for (name, values), style in zip(curves.items(), ("s-", "o--", "^:"), strict=False):
            every = max(1, len(frame) // 15)
            axes.plot(values, style, ms=4, markevery=every, label=name)
        if best:
            text = f"best epoch {best['epoch']:.0f}: {best[history.monitor]:.4f}"
            axes.axvline(best["epoch"], color="grey", linestyle="--", linewidth=1, label=text)
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend(fontsize=8)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")


class Curves(L.Callback):
    """Draws what ``History`` holds when training ends; a picture never fails a run."""

    def on_fit_end(self, trainer: Any, pl_module: L.LightningModule) -> None:
        history = find(trainer, History)
        if trainer.fast_dev_run or not trainer.is_global_zero or not history.epochs:
            return
        try:
            draw(history, Path(trainer.default_root_dir) / CURVES)
        except Exception as error:
            log.warning("The learning curves could not be drawn: %s", error)
