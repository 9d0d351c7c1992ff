"""Tables 2, 4, 5 and 9 and Figure 5 as numbers: paper, authors' log and ours, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any

import pandas as pd

from experiments.grid import Job
from experiments.paper.values import logged, lookup
from experiments.report.lines import (
    Line,
    all_rows,
    lines,
    marks,
    missing,
    model_label,
    notes,
    ratio,
)
from experiments.report.page import SPECS, Table, number
from experiments.report.rankings import again, beyond, leader, selected, side_by_side, tests
from experiments.rows import METRICS, RANKINGS, check_protocol


@dataclass(frozen=True)
class Comparison:
    """An experiment whose settings are lines; the fields are told in ``tables.yaml``."""

    experiment: str
    title: str
    caption: str
    key: str = "variant"
    default: str = "whole"
    beside: Sequence[str] = ()
    printed: Sequence[str] = ("table2_overall", "model")
    paper_names: dict[str, str] = field(default_factory=dict)
    log_names: dict[str, str] = field(default_factory=dict)

    @property
    def of_sigma(self) -> bool:
        """Whether the lines are variants of SIGMA, all metrics in one table."""
        return self.key != "model"

    def label(self, job: Job) -> str:
        if not self.of_sigma:
            return model_label(job)
        return (job.override(self.key) or self.default).replace("_", " ")

    def lines(self, rows: pd.DataFrame, dataset: str) -> list[Line]:
        """Of flips by r, every r from the number of items read on is none; one of them says so."""
        words = (f"experiment={self.experiment}", f"dataset={dataset}")
        compared = lines(rows, *words, label=self.label)
        if self.key != "model.r":
            return compared
        length = all_rows(compared)["dataset.max_length"].astype(float).max()
        last = min((r for line in compared if (r := int(line.label)) >= length), default=10**9)
        return [line for line in compared if len(line.rows) or int(line.label) <= last]

    def cells(self, line: Line, first: Line, dataset: str, metric: str) -> dict[str, Any]:
        """One metric of a line: theirs and ours."""
        name, column = self.printed
        theirs = self.paper_names.get(line.label, line.label)
        printed = {"dataset": dataset, column: theirs}
        log = self.log_names.get(line.label, line.label)
        others = {"dataset": dataset, "model": theirs, "metric": metric}
        low_high = {lookup("independent", side, **others): None for side in ("low", "high")}
        cells: dict[str, Any] = {
            "paper": lookup(name, metric, **printed),
            "log valid": logged(dataset, log, metric, "valid"),
            **line.spread("ours valid", f"val/{metric}"),
            "log test": logged(dataset, log, metric, "test"),
            "independent test": " – ".join(number(v) for v in low_high if not isnan(v)) or None,
            **line.spread("ours test", f"test/{metric}"),
        }
        if self.of_sigma:
            change = ratio(line, first, f"test/{metric}")
            return cells | {"of the first": float("nan") if line is first else change}
        valid = cells["paper"] if isnan(cells["log valid"]) else cells["log valid"]
        return cells | {
            "difference valid": cells["ours valid"] / valid - 1,
            "difference test": cells["ours test"] / cells["log test"] - 1,
        }

    def table(self, compared: Sequence[Line], dataset: str, *metrics: str) -> Table:
        """Lines side by side; a column without any number is left out."""
        prefixes = {m: f"{m.upper()}, " if self.of_sigma else "" for m in metrics}
        splits = {f"{split}/{m}": m for m in metrics for split in ("val", "test")}
        records = []
        for line in compared:
            record: dict[str, Any] = {"setting" if self.of_sigma else "model": line.label}
            for metric, prefix in prefixes.items():
                cells = self.cells(line, compared[0], dataset, metric)
                record |= {prefix + name: value for name, value in cells.items()}
            records.append(record | {"seeds": line.seeds_of(list(splits))})
        frame = pd.DataFrame(records).dropna(axis="columns", how="all")
        names = {"val": "ours valid", "test": "ours test"}
        ours = {prefixes[m] + names[split.partition("/")[0]]: split for split, m in splits.items()}
        best = {name: marks(compared, split) for name, split in ours.items() if name in frame}
        name, title = f"{self.experiment}_{dataset}", f"{self.title}, {dataset}"
        if not self.of_sigma:
            name = f"table2_{dataset}_{metrics[0].replace('@', '')}"
            title += f": {metrics[0].upper()}"
        return Table(name, title, self.caption, frame, best)


COMPARISONS = {name: Comparison(name, **spec) for name, spec in SPECS["comparisons"].items()}


def compare(comparison: Comparison, rows: pd.DataFrame, dataset: str) -> list[Table]:
    """The tables of an experiment on a data set, if there is enough to compare, of runs whose best
    epoch was chosen among all items, as the paper's.

    Raises:
        MixedProtocolError: rows that must not stand in one column.
    """
    # Composing an experiment's runs takes seconds.
    results = selected(rows[(rows["dataset"] == dataset) & ~rows["aside"].astype(bool)])
    sigma = results[results["model"].str.startswith("sigma")]
    if comparison.of_sigma and sigma["setting"].nunique() < 2:
        return []
    groups = {comparison.experiment: comparison.lines(results, dataset)}
    for name in comparison.beside:
        groups[name] = lines(results, f"experiment={name}", f"dataset={dataset}")
    compared = [
        line
        for name, group in groups.items()
        for line in group
        if len(line.rows) or name == comparison.experiment
    ]
    title = f"{comparison.title}, {dataset}"
    check_protocol(f"{title},", all_rows(compared))
    if sum(len(line.rows) > 0 for line in compared) < 1 + comparison.of_sigma:
        return []
    if comparison.of_sigma:
        tables = [comparison.table(compared, dataset, *METRICS)]
    else:
        tables = [comparison.table(compared, dataset, metric) for metric in METRICS]
    tables += both(comparison, compared, dataset)
    tables[0].notes.extend(notes(compared))
    for name, group in groups.items():
        words = (f"experiment={name}", f"dataset={dataset}")
        tables[0].missing.extend(missing(words, comparison.key, group, compared))
        for table in (table for table in tables if table.name.endswith("rankings_test")):
            table.missing.extend(again(words, comparison.key, group, compared))
    return tables


def both(comparison: Comparison, compared: Sequence[Line], dataset: str) -> list[Table]:
    """An experiment's lines under both rankings; variants, once any was ranked among unseen."""
    unseen = all_rows(compared).get("test/unseen/ndcg@10")
    if comparison.of_sigma and (unseen is None or unseen.isna().all()):
        return []
    name = f"{comparison.experiment if comparison.of_sigma else 'table2'}_{dataset}"
    title = f"{comparison.title}, {dataset}"
    first = compared[0]
    if not comparison.of_sigma:
        first = next(line for line in compared if line.label == "sigma")
    references = [(first, ranking) for ranking in RANKINGS]
    for ranking in () if comparison.of_sigma else RANKINGS:
        best = leader(compared, ranking)
        references += [(best, ranking)] if best and best is not first else []
    return [
        *(side_by_side(compared, split, name, title) for split in ("test", "validation")),
        *tests(compared, references, name, title),
        *beyond(compared, name, title),
    ]
