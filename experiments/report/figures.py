"""The report's figures, drawn by seaborn from rows: bars and dots are means, with one deviation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns

from experiments.canvas import COLOURS, GREY, LIGHT, save
from experiments.paper.values import logged, lookup, paper
from experiments.report.lines import Line
from experiments.report.others import GROUPS, group_counts
from experiments.rows import full_ranks
from experiments.significance import gains

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
BARS = {"errorbar": "sd", "capsize": 0.3, "err_kws": {"linewidth": 1}}
METRICS = ("hr@10", "ndcg@10")


def _long(own: Sequence[Line], metrics: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A line for each line of a table, seed and metric: label, value, and what ``metrics`` adds."""
    records = [
        {"label": line.label, "value": value, **more}
        for line in own
        for metric, more in metrics.items()
        for value in line.rows.get(metric, pd.Series(dtype=float))
    ]
    return pd.DataFrame(records, columns=["label", "value", *next(iter(metrics.values()))])


def against(dataset: str, own: Sequence[Line], stem: Path) -> dict[str, Path]:
    """Table 2 as dots: the paper's numbers, its authors' logs and ours."""
    metrics = {
        f"{split}/{metric}": {"metric": metric.upper(), "source": f"ours {name}"}
        for metric in METRICS
        for split, name in SPLITS.items()
    }
    records = []
    for line in own:
        for metric in METRICS:
            key = {"dataset": dataset, "model": line.label, "metric": metric}
            values = {"paper": lookup(paper("table2_overall"), "value", **key)} | {
                f"authors' log {split}": logged(dataset, line.label, metric, split)
                for split in SPLITS.values()
            }
            records += [
                {"label": line.label, "value": value, "metric": metric.upper(), "source": source}
                for source, value in values.items()
            ]
    frame = pd.concat([pd.DataFrame(records), _long(own, metrics)], ignore_index=True)
    frame = frame.dropna(subset="value")
    sources = [source for source in SOURCES if source in set(frame["source"])]
    grid = sns.catplot(
        frame,
        kind="point",
        x="value",
        y="label",
        hue="source",
        col="metric",
        sharex=False,
        order=[line.label for line in own],
        hue_order=sources,
        dodge=0.6,
        linestyle="none",
        errorbar="sd",
        markers=[SOURCES[source][0] for source in sources],
        markersize=5,
        palette=[SOURCES[source][1] for source in sources],
        err_kws={"linewidth": 1},
        height=1.2 + 0.45 * len(own),
        aspect=1.1 if len(own) > 5 else 2,
    )
    grid.set_axis_labels("", "").set_titles(f"{dataset}: {{col_name}}")
    return _saved(grid, stem, f"{dataset}: the paper's numbers, its authors' logs and ours")


def groups(dataset: str, own: Sequence[Line], stem: Path) -> dict[str, Path]:
    """Figures 3, 4 and 7: test metrics by the paper's groups of users."""
    metrics = {
        f"test/{group}/{metric}": {"metric": metric.upper(), "group": group}
        for metric in METRICS
        for group in GROUPS
    }
    frame = _long(own, metrics).dropna(subset="value")
    if frame.empty:
        return {}
    rows = (row for line in own for row in line.rows.to_dict("records"))
    users = next((counts for row in rows if (counts := group_counts(row))), {})
    labels = {g: f"{g}\n{users[g]:,} users" if g in users else g for g in GROUPS}
    frame["group"] = frame["group"].map(labels)
    order = [label for label in labels.values() if label in set(frame["group"])]
    grid = sns.catplot(
        frame,
        kind="bar",
        x="group",
        y="value",
        hue="label",
        col="metric",
        sharey=False,
        order=order,
        palette="colorblind",
        height=3.8,
        aspect=1.5,
        **BARS,
    )
    grid.set_axis_labels("", "").set_titles(f"{dataset}: {{col_name}}")
    return _saved(grid, stem, f"{dataset}: test metrics by length of history")


def flip_range(dataset: str, own: Sequence[Line], stem: Path) -> dict[str, Path]:
    """Figure 5: metrics over the number r of items that the flip leaves in place."""
    metrics = {
        f"{split}/{metric}": {"metric": metric.upper(), "split": name}
        for metric in METRICS
        for split, name in SPLITS.items()
    }
    frame = _long(own, metrics).dropna(subset="value")
    grid = sns.catplot(
        frame,
        kind="point",
        x="label",
        y="value",
        hue="split",
        col="metric",
        sharey=False,
        order=sorted(set(frame["label"]), key=int),
        dodge=0.1,
        markers=["s", "o"],
        linestyles=["--", "-"],
        palette=COLOURS[:2],
        height=3.6,
        aspect=1.3,
        errorbar="sd",
        linewidth=1.5,
        err_kws={"linewidth": 1},
        capsize=0.1,
    )
    grid.set_axis_labels("r", "").set_titles(f"{dataset}: {{col_name}}")
    return _saved(grid, stem, f"{dataset}: metrics over the range r of the flip")


def tail(own: Sequence[Line]) -> pd.DataFrame:
    """HR@10 of each seed by length of history: label, bin, users, value."""
    bins = [
        f"{first}+" if last is None else f"{first}" if last == first + 1 else f"{first}–{last - 1}"
        for first, last in zip(FIRST_LENGTHS, [*FIRST_LENGTHS[1:], None], strict=True)
    ]
    frames = []
    for line in own:
        for row in line.rows.to_dict("records") if line.label in TAIL_MODELS else []:
            ranks = full_ranks(row)
            if ranks is not None:
                edges = [*FIRST_LENGTHS, float("inf")]
                place = pd.cut(ranks["history_length"], edges, right=False, labels=bins)
                hits = pd.Series(gains(ranks, "hr@10")).groupby(place, observed=True)
                frame = hits.agg(users="size", value="mean").rename_axis("bin").reset_index()
                frames.append(frame.assign(label=line.label))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def long_tail(dataset: str, own: Sequence[Line], stem: Path) -> dict[str, Path]:
    """Figure 1: users of each length of history as bars, HR@10 of models over them as lines."""
    frame = tail(own)
    if frame.empty:
        return {}
    users = frame.groupby("bin", observed=True)["users"].max().reset_index()
    grid = sns.catplot(users, kind="bar", x="bin", y="users", color=LIGHT, height=3.8, aspect=1.5)
    right = grid.ax.twinx()
    sns.pointplot(
        frame,
        x="bin",
        y="value",
        hue="label",
        dodge=0.1,
        errorbar="sd",
        palette=COLOURS[:3],
        markers=["o", "s", "^"],
        ax=right,
        linewidth=1.5,
        err_kws={"linewidth": 1},
        legend="full",
        hue_order=[label for label in TAIL_MODELS if label in set(frame["label"])],
    )
    if users["users"].max() > 20 * users["users"].min():
        grid.ax.set_yscale("log")
    right.set(ylabel="HR@10", ylim=(0, None))
    right.legend(title="")
    grid.ax.set_ylabel("users", color=GREY)
    grid.set(xlabel="length of history", title=dataset)
    return _saved(grid, stem, f"{dataset}: users and HR@10 by length of history")


def _saved(grid: Any, stem: Path, title: str) -> dict[str, Path]:
    import matplotlib.pyplot as plt

    if grid.legend is not None:
        grid.legend.set_title("")
    path = save(grid.figure, stem.with_suffix(".svg"), title)
    plt.close(grid.figure)
    return {title: path}
