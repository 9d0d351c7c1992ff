"""Learning curves as ``curves.png`` in the run's folder."""

import logging
import re
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from sigma.callbacks.history import History

log = logging.getLogger(__name__)

# Okabe and Ito's palette: told apart by colour-blind readers too; markers tell them apart in grey.
LOSS_COLOUR = "#0072B2"
METRICS = (("hr@10", "#009E73", "s"), ("ndcg@10", "#D55E00", "o"), ("mrr@10", "#CC79A7", "^"))
GREY = "#555555"


def draw(
    epochs: list[dict[str, float]],
    best: dict[str, float] | None,
    path: Path,
    monitor: str = "val/ndcg@10",
) -> None:
    """Loss on the left, validation metrics on the right, the best epoch marked.

    Args:
        epochs: as in ``History``.
        best: the best of them.
        path: PNG to write.
        monitor: metric that chose the best epoch; what precedes the metric in its name, such as
            ``sampled_``, precedes the others, too.
    """
    prefix = re.sub(r"^val/|(hr|ndcg|mrr)@\d+$", "", monitor)
    # No pyplot: it would keep state between the jobs of a multirun and look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    curves = [(left, "train/loss", LOSS_COLOUR, "o")]
    curves += [(right, f"val/{prefix}{name}", colour, marker) for name, colour, marker in METRICS]
    for axes, name, colour, marker in curves:
        points = [(e["epoch"], e[name]) for e in epochs if name in e]
        if points:
            x, y = zip(*points, strict=True)
            every = max(1, len(points) // 15)
            axes.plot(
                x, y, color=colour, linewidth=1.8, label=name,
                marker=marker, markersize=4, markevery=every,
            )  # fmt: skip
    left.set(title="Training loss", xlabel="epoch")
    right.set(title="Validation", xlabel="epoch")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if best is not None:
            axes.axvline(best["epoch"], color=GREY, linestyle="--", linewidth=1)
    if best is not None:
        label = f"best epoch {best['epoch']:.0f}: {monitor} = {best[monitor]:.4f}"
        right.plot([], [], color=GREY, linestyle="--", linewidth=1, label=label)
    if right.get_legend_handles_labels()[0]:
        right.legend(loc="best", fontsize=8, frameon=True, framealpha=0.9)
    figure.savefig(path)


class Curves(Callback):
    """Draws what ``History`` holds when training ends; a picture never fails a run.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "curves.png"

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        histories = [c for c in trainer.callbacks if isinstance(c, History)]  # type: ignore[attr-defined]
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        if not histories or not histories[0].epochs:
            return
        try:
            history = histories[0]
            draw(history.epochs, history.best(), self.path, history.monitor)
            log.info("Learning curves: %s", self.path)
        except Exception as error:
            log.warning("The learning curves could not be drawn: %s", error)
