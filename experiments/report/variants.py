"""Which part of SIGMA helps under which ranking: ``experiment=parts``, with tests over seeds."""

import json
from collections.abc import Sequence
from itertools import product
from typing import Any

import pandas as pd

from experiments.grid import Job, choices
from experiments.report.lines import Line, lines, missing, ratio
from experiments.report.page import DASH, Table
from experiments.rows import check_protocol
from experiments.significance import common, holm, p_value

EXPERIMENT = "parts"
LEVEL = 0.05  # of significance
SCORES = ("hr@10", "ndcg@10", "unseen/hr@10", "unseen/ndcg@10")
CAPTION = (
    "SIGMA without a part, beside the whole one of the same shortcut; the whole ones are beside "
    "that of the projected shortcut. The metric named above chose the best epoch, and its test is "
    "what is compared: the relative difference over the seeds both have, and one-sided paired "
    "t-tests over seeds, Holm-corrected for the lines of the table. The part helps where the line "
    "without it is behind, and hurts where it is ahead."
)


def variant(job: Job) -> str:
    return (job.override("variant") or "whole").replace("_", " ")


def verdicts(pairs: Sequence[tuple[Line, Line]], metric: str) -> pd.DataFrame:
    """Of each line and what it stands beside, a test to both sides; a line beside itself has none.

    Columns: ``p over seeds`` of the more likely side, corrected, and ``verdict`` on the line.
    """
    values = [common(line.rows, other.rows, f"test/{metric}") for line, other in pairs]
    apart = [v[:0] if a is b else v for v, (a, b) in zip(values, pairs, strict=True)]
    ahead = pd.Series(holm([p_value(v[:, 0] - v[:, 1]) for v in apart]))
    behind = pd.Series(holm([p_value(v[:, 1] - v[:, 0]) for v in apart]))
    verdict = pd.Series("no difference", ahead.index).mask(ahead < LEVEL, "ahead")
    verdict = verdict.mask(behind < LEVEL, "behind").where(ahead.notna(), DASH)
    return pd.DataFrame({"p over seeds": ahead.where(ahead < behind, behind), "verdict": verdict})


def table(rows: pd.DataFrame, dataset: str, monitor: str) -> list[Table]:
    """The lines of rows whose best epoch this metric chose, if there are two to compare."""
    words = (f"experiment={EXPERIMENT}", f"dataset={dataset}", f"evaluation.monitor={monitor}")
    shortcuts = choices(EXPERIMENT)["model.shortcut"]
    groups = {s: lines(rows, *words, f"model.shortcut={s}", label=variant) for s in shortcuts}
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
    tests = verdicts([(line, other) for _, line, other in compared], metric)
    lacking = [
        command
        for shortcut, group in groups.items()
        for command in missing([*words, f"model.shortcut={shortcut}"], "variant", group, group)
    ]
    frame = pd.concat([pd.DataFrame(records), tests], axis=1)
    name = f"parts_{dataset}_{metric.replace('/', '_').replace('@', '')}"
    return [Table(name, title, CAPTION, frame, missing=lacking)]


def tables(rows: pd.DataFrame, datasets: Sequence[str]) -> list[Table]:
    """A table a data set and monitored metric, of the data sets that have rows of it."""
    results = rows[~rows["aside"].astype(bool) & (rows["model"] == "sigma")]
    groups = dict(list(results.groupby(["dataset", "evaluation.monitor"])))
    return [
        part
        for dataset, monitor in product(datasets, choices(EXPERIMENT)["evaluation.monitor"])
        if (group := groups.get((dataset, json.dumps(monitor)))) is not None
        and group["setting"].nunique() > 1  # composing the experiment's runs takes seconds
        for part in table(group, dataset, monitor)
    ]
