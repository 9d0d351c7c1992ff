"""The report's figures, drawn by seaborn from rows: means, with one standard deviation."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from experiments.paper.values import logged, lookup
from experiments.ranks import full_ranks
from experiments.report.lines import Line
from experiments.report.others import GROUPS
from experiments.report.tables import COMPARISONS
from experiments.rows import RANKINGS
from experiments.significance import gains
from sigma.files import atomic_path

matplotlib.use("Agg")  # needs no screen
# Paths, not fonts: the reader may lack them. The salt makes the ids repeat.
matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "sigma"})
METRICS = ("hr@10", "ndcg@10")
SOURCES = {
    "paper": ("D", "black"),
    "authors' log valid": ("s", "#56B4E9"),
    "authors' log test": ("s", "#0072B2"),
    "ours valid": ("o", "#E69F00"),
    "ours test": ("o", "#D55E00"),
    "ours valid, unseen items": ("^", "#CC79A7"),
    "ours test, unseen items": ("^", "#009E73"),
}  # name -> marker and colour, of Okabe and Ito's palette
VALID = ("authors' log valid", "ours valid", "ours valid, unseen items")
BINS = {
    **{"1–3": 1, "4": 4, "5": 5, "6–7": 6, "8–9": 8, "10–14": 10, "15–19": 15, "20–49": 20},
    "50+": 50,
}  # of lengths of history, for Figure 1: label -> first
TAIL_MODELS = ("sasrec", "mamba4rec", "sigma")


def sources(dataset: str, lines: Sequence[Line]) -> pd.DataFrame:
    """The paper's numbers, its authors' logs and every seed of ours: label, metric, source, value,
    dataset.
    """
    records = []
    for line, metric in product(lines, METRICS):
        label = line.label
        values = {
            "paper": [lookup("table2_overall", metric, dataset=dataset, model=label)],
            "authors' log valid": [logged(dataset, label, metric, "valid")],
            "authors' log test": [logged(dataset, label, metric, "test")],
            "ours valid": line.rows.get(f"val/{metric}", []),
            "ours test": line.rows.get(f"test/{metric}", []),
            "ours valid, unseen items": line.rows.get(f"val/unseen/{metric}", []),
            "ours test, unseen items": line.rows.get(f"test/unseen/{metric}", []),
        }
        records += [
            (label, metric.upper(), source, value, dataset)
            for source, column in values.items()
            for value in column
        ]
    return pd.DataFrame(records, columns=["label", "metric", "source", "value", "dataset"]).dropna()


def against(frame: pd.DataFrame, path: Path, panel: str = "metric") -> dict[str, Path]:
    """Table 2 as dots: ``sources``, a panel for each value of ``panel``."""
    names = [name for name in SOURCES if name in set(frame["source"])]
    models = list(dict.fromkeys(frame["label"]))
    metrics, datasets = (", ".join(frame[name].unique()) for name in ("metric", "dataset"))
    return _draw(
        frame,
        path,
        f"{datasets}, {metrics}: the paper's numbers, its authors' logs and ours",
        **{"kind": "point", "x": "value", "y": "label", "hue": "source", "col": panel},
        **{"order": models, "hue_order": names, "col_wrap": 2, "sharex": False},
        **{"height": 1.2 + 0.4 * len(models), "aspect": 1.2 if len(models) > 5 else 2},
        markers=[SOURCES[name][0] for name in names],
        palette=[SOURCES[name][1] for name in names],
        dodge=0.6 * (len(names) > 1),  # seaborn divides by one less
        linestyle="none",
        markersize=5,
    )


def groups(dataset: str, lines: Sequence[Line], path: Path) -> dict[str, Path]:
    """Figures 3, 4 and 7: test metrics by the paper's groups of users; rankings are rows."""
    records = [
        (line.label, metric.upper(), ranking, group, value)
        for line, metric, group in product(lines, METRICS, GROUPS)
        for ranking, prefix in RANKINGS.items()
        for value in line.rows.get(f"test/{prefix}{group}/{metric}", [])
    ]
    columns = ["label", "metric", "ranking", "group", "value"]
    frame = pd.DataFrame(records, columns=columns).dropna()
    title = f"{dataset}: test metrics by length of history"
    rows = {"row": "ranking"} if frame["ranking"].nunique() > 1 else {}
    return _draw(frame, path, title, kind="bar", x="group", **rows)


def tail(lines: Sequence[Line]) -> pd.DataFrame:
    """HR@10 of each seed by length of history: label, bin, users, and the metric by ranking."""
    edges = [*BINS.values(), float("inf")]
    frames = []
    for line in (line for line in lines if line.label in TAIL_MODELS):
        for row in line.rows.to_dict("records"):
            ranks = full_ranks(row)
            if ranks is None:
                continue
            place = pd.cut(ranks["history_length"], edges, right=False, labels=list(BINS))
            hits = {f"HR@10, {name}": gains(ranks, f"{p}hr@10") for name, p in RANKINGS.items()}
            hits = {name: values for name, values in hits.items() if len(values)}
            grouped = pd.DataFrame(hits).groupby(place, observed=True)
            frame = grouped.mean().assign(users=grouped.size()).rename_axis("bin")
            frames.append(frame.reset_index().assign(label=line.label))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def long_tail(dataset: str, lines: Sequence[Line], path: Path) -> dict[str, Path]:
    """Figure 1: users of each length of history, and HR@10 of models under both rankings."""
    frame = tail(lines)
    if frame.empty:
        return {}
    frame["bin"] = frame["bin"].cat.remove_unused_categories()
    metrics = [name for name in frame if str(name).startswith("HR@10")]
    frame = frame.melt(["bin", "label"], ["users", *metrics], "metric").dropna()
    frame.loc[frame["metric"] == "users", "label"] = "users"
    frame = frame.rename(columns={"bin": "length of history"})
    title = f"{dataset}: users and HR@10 by length of history"
    return _draw(frame, path, title, kind="point", x="length of history")


def _draw(frame: pd.DataFrame, path: Path, title: str, **look: Any) -> dict[str, Path]:
    """Write an SVG with its title in it, for the blind; what it shows, and its file."""
    if frame.empty:
        return {}
    usual = {"y": "value", "hue": "label", "col": "metric", "sharey": False}
    usual |= {"palette": "colorblind", "height": 3.8, "aspect": 1.5}
    bars = {"errorbar": "sd", "err_kws": {"linewidth": 1}, "capsize": 0.1}
    grid = sns.catplot(frame, **usual | bars | look)
    names = "{col_name}, {row_name}" if "row" in look else "{col_name}"
    grid.set_titles(names).set_ylabels("").legend.set_title("")
    if look.get("x") == "value":  # panels of one metric are named by their data set
        grid.set_xlabels(", ".join(frame["metric"].unique()) if look["col"] == "dataset" else "")
        grid.tick_params(axis="x", labelrotation=30)
    for axes in grid.axes.flat:
        axes.grid(axis="y", alpha=0.4)
    grid.tight_layout()
    with atomic_path(path) as partial:
        grid.figure.savefig(partial, format="svg", metadata={"Title": title, "Date": None})
    plt.close(grid.figure)
    return {title: path}


def draw(rows: pd.DataFrame, experiment: str, dataset: str, folder: Path) -> dict[str, Path]:
    """An experiment's figures: what each shows, and its file."""
    if experiment not in ("table2_overall", "table4_ablation", "figure5_flip_range"):
        return {}
    compared = [line for line in COMPARISONS[experiment].lines(rows, dataset) if len(line.rows)]
    if experiment == "table4_ablation":
        return groups(dataset, compared, folder / f"figure4_{dataset}.svg")
    frame = sources(dataset, compared)
    if experiment == "figure5_flip_range":
        title = f"{dataset}: metrics over the range r of the flip"
        look = {"kind": "point", "x": "r", "hue": "source", "dodge": 0.1}
        frame = frame.rename(columns={"label": "r"})
        return _draw(frame, folder / f"figure5_{dataset}.svg", title, **look)
    return (
        against(frame, folder / f"table2_{dataset}.svg")
        | long_tail(dataset, compared, folder / f"figure1_{dataset}.svg")
        | groups(dataset, compared, folder / f"figure3_{dataset}.svg")
    )
