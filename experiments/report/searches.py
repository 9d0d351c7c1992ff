"""What searches of equal budgets have come to: spent trials, and the best of each model so far."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from experiments.report.page import Table
from experiments.rows import check_protocol
from sigma.files import atomic_path
from sigma.runs.identity import flattened

DRAWN = ("model", "dataset", "task", "objective", "loss")  # parts of a config
SCORES = ("hr@10", "ndcg@10", "unseen/hr@10", "unseen/ndcg@10")


def searches(rows: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Data set, monitored metric, model and trials of each search, the best trial last.

    Raises:
        MixedProtocolError: searches of one data set and metric that spent other budgets, or whose
            trials are of other protocols.
    """
    trials = rows[rows["tuning trials"] > 0]
    if trials.empty:
        return
    for (dataset, monitor), group in trials.groupby(["dataset", "evaluation.monitor"]):
        metric = str(json.loads(str(monitor)))
        # A search that was continued has trials that knew of a smaller budget.
        asked = group.groupby("model")["tuning trials"].transform("max")
        group = group.assign(**{"tuning trials": asked})
        check_protocol(f"The searches on {dataset} by {metric}", group)
        for model, members in group.groupby("model"):
            yield str(dataset), metric, str(model), members.sort_values([metric, "trial"])


def settings(trials: pd.DataFrame) -> str:
    """What the last trial drew: settings in which the trials differ."""
    flat = pd.DataFrame([dict(flattened(config)) for config in trials["config"]]).astype(object)
    texts = []
    for key, value in flat.iloc[-1].dropna().items():
        group, _, name = str(key).rpartition(".")
        if str(key).partition(".")[0] in DRAWN and flat[key].map(str).nunique() > 1:
            name = group if name == "_target_" else name
            text = f"{value:.3g}" if isinstance(value, float) else str(value).rpartition(".")[2]
            texts.append(f"{name}={text}")
    return ", ".join(texts)


def budgets(rows: pd.DataFrame) -> list[Table]:
    """A table a data set, a line a search."""
    records: dict[str, list[dict[str, Any]]] = {}
    for dataset, metric, model, trials in searches(rows):
        best = trials.iloc[-1]
        record = {"chosen by": metric, "model": model, "trials asked": best["tuning trials"]}
        record |= {"trials with a row": len(trials), "epochs": trials["epochs"].sum()}
        record["validation"] = best[metric]
        record |= {f"test {name}": best.get(f"test/{name}") for name in SCORES}
        record |= {"settings": settings(trials), "run": best["run_id"]}
        records.setdefault(dataset, []).append(record)
    return [Table.of("searches", pd.DataFrame(r), dataset) for dataset, r in records.items()]


def progress(rows: pd.DataFrame) -> pd.DataFrame:
    """The best validation after each trial: data set, metric, model, trial (from 1), value."""
    frames = []
    for dataset, metric, model, trials in searches(rows.dropna(subset="trial")):
        best = trials.set_index(trials["trial"].astype(int) + 1)[metric].astype(float)
        every = range(1, int(trials["tuning trials"].max()) + 1)  # a pruned one changes nothing
        best = best.groupby(level=0).max().reindex(every).cummax().ffill().dropna()
        frame = best.rename_axis("trial").rename("value").reset_index()
        frames.append(frame.assign(dataset=dataset, metric=metric, model=model))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def pictures(rows: pd.DataFrame, folder: Path) -> dict[str, Path]:
    """A figure a data set: the best validation so far over trials, by model and metric."""
    every = progress(rows)
    result = {}
    for dataset, frame in every.groupby("dataset") if len(every) else ():
        title = f"{dataset}: best validation so far over the trials of each search"
        grid = sns.relplot(
            frame,
            **{"kind": "line", "drawstyle": "steps-post", "x": "trial", "y": "value"},
            **{"hue": "model", "style": "model", "col": "metric", "palette": "colorblind"},
            **{"height": 3.8, "aspect": 1.3},
            facet_kws={"sharey": False},
        )
        grid.set_titles("{col_name}").set_ylabels("").legend.set_title("")
        path = folder / f"searches_{dataset}.svg"
        with atomic_path(path) as partial:
            grid.figure.savefig(partial, format="svg", metadata={"Title": title, "Date": None})
        plt.close(grid.figure)
        result[title] = path
    return result
