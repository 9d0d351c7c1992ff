"""Tables 2, 4, 5 and 9 and Figure 5 as numbers: paper, authors' log and ours."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from experiments.grid import Job
from experiments.paper.values import logged, lookup, paper
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
from experiments.report.page import DASH, Table, change, form, number
from experiments.rows import METRICS, check_protocol
from experiments.significance import holm, over_seeds, over_users

LEVEL = 0.05  # of significance


def overall(rows: pd.DataFrame, dataset: str) -> list[Table]:
    """Table 2 of one data set: a table a metric, and the tests of SIGMA against each baseline."""
    compared = {
        experiment: lines(rows, model_label, f"experiment={experiment}", f"dataset={dataset}")
        for experiment in ("table2_overall", "relatives", "yardsticks")
    }
    first, *others = compared.values()
    everyone = first + [line for group in others for line in group if len(line.rows)]
    check_protocol(f"Table 2, {dataset},", all_rows(everyone))
    if not any(len(line.rows) for line in everyone):
        return []
    tables = [_metric_table(dataset, metric, everyone) for metric in METRICS]
    tables[0].notes.extend(notes(everyone))
    for experiment, group in compared.items():
        tables[0].missing.extend(missing(experiment, dataset, group, everyone))
    tests = _tests(dataset, everyone)
    return [*tables, tests] if len(tests.frame) else tables


def _metric_table(dataset: str, metric: str, everyone: list[Line]) -> Table:
    records = []
    for line in everyone:
        key = {"dataset": dataset, "model": line.label, "metric": metric}
        low_high = [lookup(paper("independent"), side, **key) for side in ("low", "high")]
        record: dict[str, Any] = {
            "model": line.label,
            "paper": lookup(paper("table2_overall"), "value", **key),
            "authors' log, valid": logged(dataset, line.label, metric, "valid"),
            **line.spread("ours, valid", f"val/{metric}"),
            "authors' log, test": logged(dataset, line.label, metric, "test"),
            "independent, test": " – ".join(map(number, dict.fromkeys(filter(None, low_high))))
            or None,
            **line.spread("ours, test", f"test/{metric}"),
            "seeds": line.seeds_of(f"val/{metric}", f"test/{metric}"),
        }
        records.append(record)
    frame = pd.DataFrame(records).astype(
        {name: float for name in records[0] if name not in ("model", "independent, test", "seeds")}
    )
    log_valid = frame["authors' log, valid"].fillna(frame["paper"])
    frame["difference, valid"] = frame["ours, valid"] / log_valid - 1
    frame["difference, test"] = frame["ours, test"] / frame["authors' log, test"] - 1
    numbers = ("paper", "authors' log, valid", "ours, valid", "authors' log, test", "ours, test")
    return Table(
        f"table2_{dataset}_{metric.replace('@', '')}",
        f"Table 2, {dataset}: {metric.upper()}",
        "Full ranking; mean ± standard deviation over seeds. The paper's numbers are mostly best "
        "validation scores, so they stand beside those, but some are of a test. Differences are "
        "from the log; of validation, from the paper where there is no log. The independent "
        "results of Mamba4Rec on Beauty begin with the authors' log's own.",
        frame,
        dict.fromkeys(numbers, number)
        | dict.fromkeys(("difference, valid", "difference, test"), change),
        {
            "ours, valid": marks(everyone, f"val/{metric}"),
            "ours, test": marks(everyone, f"test/{metric}"),
        },
    )


def _tests(dataset: str, everyone: list[Line]) -> Table:
    """SIGMA against every other model, by seeds and by users."""
    metric = "ndcg@10"
    sigma = next(line for line in everyone if line.label == "sigma")
    others = [line for line in everyone if line.label != "sigma" and len(line.rows)]
    records = []
    for line in others if len(sigma.rows) else []:
        p_seeds, n = over_seeds(sigma.rows, line.rows, f"test/{metric}")
        difference, p_users, n_users = over_users(sigma.rows, line.rows, metric)
        records.append(
            {
                "against": line.label,
                "improvement": ratio(sigma, line, f"test/{metric}"),
                "p over seeds": p_seeds,
                "seeds in common": n,
                "mean difference per user": difference,
                "p over users": p_users,
                "seeds with ranks": n_users,
            }
        )
    frame = pd.DataFrame(records)
    if records:
        corrected = pd.Series(holm(frame["p over users"]))
        frame["p over users, corrected"] = corrected
        verdict = corrected.map(lambda p: "yes" if p < LEVEL else "no")
        frame["significant"] = verdict.where(corrected.notna(), DASH)
    p_columns = ("p over seeds", "p over users", "p over users, corrected")
    return Table(
        f"table2_{dataset}_tests",
        f"Table 2, {dataset}: is SIGMA better? (test NDCG@10)",
        "One-sided paired t-tests of SIGMA being larger: over seeds (the paper says one-sided, "
        "not over what), and over test users (each user's metric averaged over seeds), "
        "Holm-corrected for the number of models compared. Users tell trained models apart, not "
        "methods: another seed is another model. The improvement is that of the means over the "
        "seeds both have.",
        frame,
        {"improvement": change, "mean difference per user": form("{:+.4f}")}
        | dict.fromkeys(p_columns, lambda p: "< .0001" if p < 1e-4 else number(p)),
    )


@dataclass(frozen=True)
class Variants:
    """Settings of one model as lines, every metric as columns.

    Attributes:
        experiment: whose runs they are.
        key: the override that tells them apart, and
        default: its value where it is not overridden.
        printed: file of the paper's numbers and its column of variants, where it has them.
        log_names: label -> the authors' log's name of that run, where it has one.
    """

    experiment: str
    key: str
    default: str
    title: str
    caption: str
    printed: tuple[str, str] | None = None
    log_names: dict[str, str] = field(default_factory=dict)

    def label(self, job: Job) -> str:
        return (job.override(self.key) or self.default).replace("_", " ")

    def lines(self, rows: pd.DataFrame, dataset: str) -> list[Line]:
        """Of flips by r, every r from the number of items read on is none; one of them says so."""
        compared = lines(rows, self.label, f"experiment={self.experiment}", f"dataset={dataset}")
        if self.key != "model.r":
            return compared
        length = all_rows(compared)["dataset.max_length"].astype(float).max()
        last = min((r for line in compared if (r := int(line.label)) >= length), default=10**9)
        return [line for line in compared if len(line.rows) or int(line.label) <= last]

    def paper(self, dataset: str, label: str, metric: str) -> float | None:
        if self.printed is None:
            return None
        name, column = self.printed
        table = paper(name).astype({column: str})
        where = {"dataset": dataset, column: ABLATION.get(label, label)}
        return lookup(table, metric, **where) if metric in table else None

    def log(self, dataset: str, label: str, metric: str, split: str) -> float | None:
        name = self.log_names.get(label)
        return logged(dataset, name, metric, split) if name else None

    def tables(self, rows: pd.DataFrame, dataset: str) -> list[Table]:
        """One table, or none where there are not two lines to compare.

        Raises:
            MixedProtocolError: rows that must not stand in one column.
        """
        # All of them are of SIGMA; composing an experiment's runs takes seconds.
        results = rows[(rows["dataset"] == dataset) & ~rows["aside"].astype(bool)]
        if results[results["model"].str.startswith("sigma")]["setting"].nunique() < 2:
            return []
        compared = self.lines(rows, dataset)
        check_protocol(f"{self.title}, {dataset},", all_rows(compared))
        if sum(len(line.rows) > 0 for line in compared) < 2:
            return []
        frame = pd.DataFrame([self._record(dataset, line, compared[0]) for line in compared])
        numbers = [name for name in frame if name not in ("setting", "seeds")]
        frame = frame.astype(dict.fromkeys(numbers, float))
        logs = [name for name in numbers if ", log " in name]
        if frame[logs].isna().all(axis=None):
            frame = frame.drop(columns=logs)
        best = {
            f"{metric.upper()}, ours {name}": marks(compared, f"{split}/{metric}")
            for metric in METRICS
            for name, split in (("valid", "val"), ("test", "test"))
        }
        return [
            Table(
                f"{self.experiment}_{dataset}",
                f"{self.title}: {dataset}",
                f'{self.caption} "Of the first" compares tests, over the seeds that both have.',
                frame,
                {n: change if n.endswith("of the first") else number for n in numbers},
                best,
                notes(compared),
                missing(self.experiment, dataset, compared),
            )
        ]

    def _record(self, dataset: str, line: Line, first: Line) -> dict[str, Any]:
        record: dict[str, Any] = {"setting": line.label}
        for metric in METRICS:
            name = metric.upper()
            record[f"{name}, paper"] = self.paper(dataset, line.label, metric)
            for split in ("valid", "test"):
                record[f"{name}, log {split}"] = self.log(dataset, line.label, metric, split)
            record |= line.spread(f"{name}, ours valid", f"val/{metric}")
            record |= line.spread(f"{name}, ours test", f"test/{metric}")
            of_first = None if line is first else ratio(line, first, f"test/{metric}")
            record[f"{name}, of the first"] = of_first
        seeds = line.seeds_of(*(f"{s}/{m}" for s in ("val", "test") for m in METRICS))
        return record | {"seeds": seeds}


ABLATION = {
    "whole": "default",
    "no flip": "w/o partial flipping",
    "no gate": "w/o ds gate",
    "no gru": "w/o fe-gru",
}  # label -> the paper's
FLIPS = {str(r): f"sigma flip 1-{50 - r}" for r in range(50)}  # r -> the authors' log's
VARIANTS = {
    variants.experiment: variants
    for variants in (
        Variants(
            "table4_ablation",
            "variant",
            "whole",
            "Tables 4 and 9, ablation",
            "SIGMA whole and without one of its parts.",
            ("table4_table9_ablation", "variant"),
            {label: f"sigma {name}" for label, name in ABLATION.items()} | {"whole": "sigma"},
        ),
        Variants(
            "table5_layers",
            "model.num_layers",
            "1",
            "Table 5, layers",
            "SIGMA of several layers.",
            ("table5_layers", "layers"),
        ),
        Variants(
            "released_vs_paper",
            "variant",
            "whole",
            "Released code and paper",
            "The released SIGMA as it is (whole), with one defect mended at a time, and the "
            "paper's.",
        ),
        Variants(
            "figure5_flip_range",
            "model.r",
            "5",
            "Figure 5, flip range",
            "SIGMA by r, the number of items that the flip leaves in place.",
            log_names=FLIPS | {"50": "sigma w/o partial flipping"},
        ),
    )
}
