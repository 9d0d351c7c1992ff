"""The report's figures, drawn by seaborn from rows: means, with one standard deviation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from experiments.canvas import COLOURS, LIGHT, save
from experiments.paper.values import logged, lookup, paper
from experiments.ranks import full_ranks
from experiments.report.lines import Line
from experiments.report.others import GROUPS, group_counts
from experiments.significance import gains

matplotlib.use("Agg")  # needs no screen
METRICS = ("hr@10", "ndcg@10")
SPLITS = {"val": "valid", "test": "test"}
SOURCES = {
    "paper": ("D", "black"),
    "authors' log valid": ("s", COLOURS[5]),
    "authors' log test": ("s", COLOURS[0]),
    "ours valid": ("o", COLOURS[4]),
    "ours test": ("o", COLOURS[1]),
}  # name -> marker and colour
FIRST_LENGTHS = (1, 4, 5, 6, 8, 10, 15, 20, 50)  # of the bins of Figure 1
TAIL_MODELS = ("sasrec", "mamba4rec", "sigma")
BARS: dict[str, Any] = {"errorbar": "sd", "err_kws": {"linewidth": 1}, "capsize": 0.1}


def _values(lines: Sequence[Line], metrics: dict[str, dict[str, str]]) -> pd.DataFrame:
    """A line for each seed and metric: label, value, and what ``metrics`` adds."""
    records = [
        {"label": line.label, "value": value, **more}
        for line in lines
        for metric, more in metrics.items()
        for value in line.rows.get(metric, pd.Series(dtype=float)).dropna()
    ]
    return pd.DataFrame(records, columns=["label", "value", *next(iter(metrics.values()))])


def _plot(
    frame: pd.DataFrame, kind: str, x: str, y: str, hue: str, col: str, **look: Any
) -> sns.FacetGrid:
    return sns.catplot(frame, kind=kind, x=x, y=y, hue=hue, col=col, **BARS | look)


def _splits() -> dict[str, dict[str, str]]:
    return {
        f"{split}/{metric}": {"metric": metric.upper(), "source": f"ours {name}"}
        for metric in METRICS
        for split, name in SPLITS.items()
    }


def sources(dataset: str, lines: Sequence[Line]) -> pd.DataFrame:
    """The paper's numbers, its authors' logs and ours: label, value, metric, source, dataset."""
    records = []
    for line in lines:
        for metric in METRICS:
            key = {"dataset": dataset, "model": line.label, "metric": metric}
            theirs = {"paper": lookup(paper("table2_overall"), "value", **key)} | {
                f"authors' log {split}": logged(dataset, line.label, metric, split)
                for split in SPLITS.values()
            }
            records += [
                {"label": line.label, "value": value, "metric": metric.upper(), "source": source}
                for source, value in theirs.items()
                if value is not None
            ]
    ours = _values(lines, _splits())
    return pd.concat([pd.DataFrame(records), ours], ignore_index=True).assign(dataset=dataset)


def against(frame: pd.DataFrame, panel: str, stem: Path) -> dict[str, Path]:
    """Table 2 as dots: ``sources``, a panel for each value of ``panel``."""
    names = [name for name in SOURCES if name in set(frame["source"])]
    models = list(dict.fromkeys(frame["label"]))
    dots = {
        "markers": [SOURCES[name][0] for name in names],
        "palette": [SOURCES[name][1] for name in names],
        "dodge": 0.6 * (len(names) > 1),  # seaborn divides by one less
        "linestyle": "none",
        "markersize": 5,
        "capsize": 0,
    }
    size = {"height": 1.2 + 0.4 * len(models), "aspect": 1.2 if len(models) > 5 else 2}
    order = {"order": models, "hue_order": names, "col_wrap": 2, "sharex": False}
    grid = _plot(frame, "point", "value", "label", "source", panel, **dots, **size, **order)
    for axes in grid.axes.flat:
        axes.grid(axis="y", alpha=0.4)
    metrics, datasets = (", ".join(frame[name].unique()) for name in ("metric", "dataset"))
    title = f"{datasets}, {metrics}: the paper's numbers, its authors' logs and ours"
    return _saved(grid, stem, title, metrics if panel == "dataset" else "")


def groups(dataset: str, lines: Sequence[Line], stem: Path) -> dict[str, Path]:
    """Figures 3, 4 and 7: test metrics by the paper's groups of users."""
    rows = [row for line in lines for row in line.rows.to_dict("records")]
    users = next((counts for row in rows if (counts := group_counts(row))), {})
    labels = {g: f"{g}\n{users[g]:,} users" if g in users else g for g in GROUPS}
    metrics = {
        f"test/{group}/{metric}": {"metric": metric.upper(), "group": label}
        for metric in METRICS
        for group, label in labels.items()
    }
    frame = _values(lines, metrics)
    if frame.empty:
        return {}
    order = [label for label in labels.values() if label in set(frame["group"])]
    look = {"palette": "colorblind", "height": 3.8, "aspect": 1.5, "sharey": False}
    grid = _plot(frame, "bar", "group", "value", "label", "metric", order=order, **look)
    return _saved(grid, stem, f"{dataset}: test metrics by length of history")


def flip_range(dataset: str, lines: Sequence[Line], stem: Path) -> dict[str, Path]:
    """Figure 5: metrics over the number r of items that the flip leaves in place."""
    frame = _values(lines, _splits())
    order = sorted(set(frame["label"]), key=int)
    look = {"palette": COLOURS[:2], "markers": ["s", "o"], "linestyles": ["--", "-"]}
    size = {"dodge": 0.1, "height": 3.6, "aspect": 1.3, "linewidth": 1.5, "sharey": False}
    grid = _plot(frame, "point", "label", "value", "source", "metric", order=order, **look, **size)
    return _saved(grid, stem, f"{dataset}: metrics over the range r of the flip", "r")


def tail(lines: Sequence[Line]) -> pd.DataFrame:
    """HR@10 of each seed by length of history: label, bin, users, value."""
    bins = [
        f"{first}+" if last is None else f"{first}" if last == first + 1 else f"{first}–{last - 1}"
        for first, last in zip(FIRST_LENGTHS, [*FIRST_LENGTHS[1:], None], strict=True)
    ]
    frames = []
    for line in lines:
        for row in line.rows.to_dict("records") if line.label in TAIL_MODELS else []:
            ranks = full_ranks(row)
            if ranks is not None:
                edges = [*FIRST_LENGTHS, float("inf")]
                place = pd.cut(ranks["history_length"], edges, right=False, labels=bins)
                hits = pd.Series(gains(ranks, "hr@10")).groupby(place, observed=True)
                frame = hits.agg(users="size", value="mean").rename_axis("bin").reset_index()
                frames.append(frame.assign(label=line.label))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def long_tail(dataset: str, lines: Sequence[Line], stem: Path) -> dict[str, Path]:
    """Figure 1: users of each length of history as bars, HR@10 of models over them as lines."""
    frame = tail(lines)
    if frame.empty:
        return {}
    frame["bin"] = frame["bin"].cat.remove_unused_categories()
    users = frame.groupby("bin", observed=True)["users"].max().reset_index()
    grid = sns.catplot(users, kind="bar", x="bin", y="users", color=LIGHT, height=3.8, aspect=1.5)
    right = grid.ax.twinx()
    models = [model for model in TAIL_MODELS if model in set(frame["label"])]
    look = {"palette": COLOURS[: len(models)], "markers": ["o", "s", "^"][: len(models)]}
    look |= {"hue_order": models, "dodge": 0.1 * (len(models) > 1), "linewidth": 1.5}
    sns.pointplot(frame, x="bin", y="value", hue="label", ax=right, **look, **BARS)
    if users["users"].max() > 20 * users["users"].min():
        grid.ax.set_yscale("log")
    right.set(ylabel="HR@10", ylim=(0, None))
    right.legend(title="")
    title = f"{dataset}: users and HR@10 by length of history"
    return _saved(grid, stem, title, "length of history", "users")


def _saved(
    grid: sns.FacetGrid, stem: Path, title: str, x: str = "", y: str = ""
) -> dict[str, Path]:
    """Write the figure; what it shows, and its file."""
    if grid.legend is not None:
        grid.legend.set_title("")
    grid.set_titles("{col_name}").set_axis_labels(x, y).tight_layout()
    path = save(grid.figure, stem.with_suffix(".svg"), title)
    plt.close(grid.figure)
    return {title: path}
