"""Which part of SIGMA helps under which ranking: ``experiment=parts``, with tests."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.grid import Job, choices
from experiments.report.lines import Line, lines, missing, ratio
from experiments.report.page import Table
from experiments.report.rankings import selected, verdicts
from experiments.rows import check_protocol
from experiments.significance import seed_differences, user_differences

EXPERIMENT = "parts"
SCORES = ("hr@10", "ndcg@10", "unseen/hr@10", "unseen/ndcg@10")
CAPTION = (
    "SIGMA without a part, beside the whole one of the same shortcut; the whole ones are beside "
    "that of the projected shortcut. The metric named above chose the best epoch, and its test is "
    "what is compared: the relative difference over the seeds both have, and one-sided paired "
    "t-tests of the line being better, over seeds and over users, Holm-corrected for the lines of "
    "the table. The part helps where the line without it is worse, and hurts where it is better."
)


def variant(job: Job) -> str:
    return (job.override("variant") or "whole").replace("_", " ")


def tested(pairs: Sequence[tuple[Line, Line]], metric: str) -> pd.DataFrame:
    """``verdicts`` on each line by what it stands beside; beside itself there is none."""
    differences = []
    for line, other in pairs:
        rows = line.rows[:0] if line is other else line.rows
        seeds = seed_differences(rows, other.rows, f"test/{metric}")
        differences.append((seeds, user_differences(rows, other.rows, metric)[0]))
    return verdicts(differences)


def table(rows: pd.DataFrame, dataset: str, monitor: str) -> list[Table]:
    """The lines whose best epoch one metric chose, if there are two to compare."""
    words = (f"experiment={EXPERIMENT}", f"dataset={dataset}", f"evaluation.monitor={monitor}")
    chosen = rows[rows["evaluation.monitor"] == json.dumps(monitor)]
    shortcuts = choices(EXPERIMENT)["model.shortcut"]
    groups = {s: lines(chosen, *words, f"model.shortcut={s}", label=variant) for s in shortcuts}
    first = groups[shortcuts[0]][0]
    compared = [
        (shortcut, line, first if line is group[0] else group[0])
        for shortcut, group in groups.items()
        for line in group
        if len(line.rows)
    ]
    title = f"Which part helps: {dataset}, best epoch by {monitor}"
    if len(compared) < 2:
        return []
    check_protocol(title, pd.concat([line.rows for _, line, _ in compared]))
    metric, records = monitor.removeprefix("val/"), []
    for shortcut, line, other in compared:
        record: dict[str, Any] = {"shortcut": shortcut, "setting": line.label}
        record |= line.spread("validation", monitor)
        for name in SCORES:
            record |= line.spread(f"test {name}", f"test/{name}")
        record["difference test"] = ratio(line, other, f"test/{metric}")
        records.append(record | {"seeds": line.seeds_of([f"test/{metric}"])})
    tests = tested([(line, other) for _, line, other in compared], metric)
    lacking = [
        command
        for shortcut, group in groups.items()
        for command in missing([*words, f"model.shortcut={shortcut}"], "variant", group, group)
    ]
    frame = pd.concat([pd.DataFrame(records), tests], axis=1)
    name = f"parts_{dataset}_{metric.replace('/', '_').replace('@', '')}"
    return [Table(name, title, CAPTION, frame, missing=lacking)]


def has_rows(rows: pd.DataFrame, dataset: str) -> bool:
    """Whether a data set has rows of the experiment that Table 4 has not."""
    sigma = rows[(rows["dataset"] == dataset) & (rows["model"] == "sigma")]
    sigma = sigma[~sigma["aside"].astype(bool)]
    shortcuts = {config["model"].get("shortcut", "projected") for config in sigma["config"]}
    return not shortcuts <= {"projected"} or len(selected(sigma, unseen=True)) > 0


def tables(rows: pd.DataFrame, datasets: Sequence[str]) -> list[Table]:
    """A table a data set and monitored metric, of the data sets that have rows of it."""
    results = rows[~rows["aside"].astype(bool) & (rows["model"] == "sigma")]
    return [
        part
        for dataset in datasets
        if has_rows(results, dataset)
        for monitor in choices(EXPERIMENT)["evaluation.monitor"]
        for part in table(results, dataset, monitor)
    ]
