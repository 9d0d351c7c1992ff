"""Tables 2, 4, 5 and 9 and Figure 5 as numbers: paper, authors' log and ours."""

from collections.abc import Callable
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
    variant_label,
)
from experiments.report.page import DASH, Table, change, form, number
from experiments.rows import METRICS, check_protocol
from experiments.significance import holm, over_seeds, over_users

FAR = 0.05  # a difference from an authors' or independent number that wants a word
LEVEL = 0.05  # of significance
Maker = Callable[[pd.DataFrame, str], list[Table]]  # (rows, data set)


def overall(rows: pd.DataFrame, dataset: str) -> list[Table]:
    """Table 2 of one data set: a table a metric, and the tests of SIGMA against each baseline."""
    compared = {
        experiment: lines(rows, model_label, f"experiment={experiment}", f"dataset={dataset}")
        for experiment in ("table2_overall", "relatives", "yardsticks")
    }
    own, *others = compared.values()
    everyone = own + [line for group in others for line in group if len(line.rows)]
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
        independent = [lookup(paper("independent"), side, **key) for side in ("low", "high")]
        record: dict[str, Any] = {
            "model": line.label,
            "paper": lookup(paper("table2_overall"), "value", **key),
            "authors' log, valid": logged(dataset, line.label, metric, "valid"),
            **line.spread("ours, valid", f"val/{metric}"),
            "difference, valid": None,
            "authors' log, test": logged(dataset, line.label, metric, "test"),
            "independent, test": " – ".join(dict.fromkeys(map(number, independent))),
            "independent, low": independent[0],
            **line.spread("ours, test", f"test/{metric}"),
            "difference, test": None,
            "seeds": line.seeds_of(f"val/{metric}", f"test/{metric}"),
        }
        records.append(record)
    frame = pd.DataFrame(records).astype(
        {name: float for name in records[0] if name not in ("model", "independent, test", "seeds")}
    )
    log_valid = frame["authors' log, valid"].fillna(frame["paper"])
    frame["difference, valid"] = frame["ours, valid"] / log_valid - 1
    frame["difference, test"] = frame["ours, test"] / frame["authors' log, test"] - 1
    said = _far(frame)
    numbers = ("paper", "authors' log, valid", "ours, valid", "authors' log, test", "ours, test")
    return Table(
        f"table2_{dataset}_{metric.replace('@', '')}",
        f"Table 2, {dataset}: {metric.upper()}",
        "Full ranking; mean ± standard deviation over seeds. The paper's numbers are mostly best "
        "validation scores, so they stand beside those, but some are of a test. Differences are "
        "from the log; of validation, from the paper where there is no log. The independent "
        "results of Mamba4Rec on Beauty begin with the authors' log's own.",
        frame.drop(columns="independent, low"),
        dict.fromkeys(numbers, number)
        | dict.fromkeys(("difference, valid", "difference, test"), change),
        {
            "ours, valid": marks(everyone, f"val/{metric}"),
            "ours, test": marks(everyone, f"test/{metric}"),
        },
        said,
    )


def _far(frame: pd.DataFrame) -> list[str]:
    """Sentences on numbers far from the authors' log's, or below the independent ones."""
    said = []
    for line in frame.to_dict("records"):
        for what, split in (("best validation", "valid"), ("test", "test")):
            log = line[f"authors' log, {split}"]
            difference = line[f"ours, {split}"] / log - 1
            if abs(difference) > FAR:
                said.append(
                    f"{line['model']}: {what} {number(line[f'ours, {split}'])} is "
                    f"{change(difference)} off the authors' log ({number(log)})."
                )
        test, low = line["ours, test"], line["independent, low"]
        if test < low * (1 - FAR):
            said.append(
                f"{line['model']}: test {number(test)} is {1 - test / low:.1%} below the "
                f"independent results ({line['independent, test']})."
            )
    return said


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


def _variants(
    rows: pd.DataFrame,
    dataset: str,
    experiment: str,
    label: Callable[[Job], str],
    title: str,
    caption: str,
    printed: Callable[[str, str], float | None] = lambda label, metric: None,
    log_name: Callable[[str], str] | None = None,
    choose: Callable[[list[Line]], list[Line]] = list,
) -> list[Table]:
    """Settings of one model as lines, every metric as columns.

    Args:
        printed: (label, metric) -> the paper's number, or None.
        log_name: label -> what the authors' log calls that run; None where it has none of them.
        choose: of the experiment's lines, those that mean something for the rows there are.
    """
    # All of them are of SIGMA; composing an experiment's runs takes seconds.
    own = rows[(rows["dataset"] == dataset) & ~rows["aside"].astype(bool)]
    if own[own["model"].str.startswith("sigma")]["setting"].nunique() < 2:
        return []  # nothing to compare
    compared = choose(lines(rows, label, f"experiment={experiment}", f"dataset={dataset}"))
    check_protocol(f"{title}, {dataset},", all_rows(compared))
    if sum(len(line.rows) > 0 for line in compared) < 2:
        return []
    first, records = compared[0], []
    for line in compared:
        record: dict[str, Any] = {"setting": line.label}
        for metric in METRICS:
            name = metric.upper()
            record[f"{name}, paper"] = printed(line.label, metric)
            for split in ("valid", "test") if log_name else ():
                record[f"{name}, log {split}"] = logged(
                    dataset, log_name(line.label), metric, split
                )
            record |= line.spread(f"{name}, ours valid", f"val/{metric}")
            record |= line.spread(f"{name}, ours test", f"test/{metric}")
            of_first = None if line is first else ratio(line, first, f"test/{metric}")
            record[f"{name}, of the first"] = of_first
        record["seeds"] = line.seeds_of(*(f"{s}/{m}" for s in ("val", "test") for m in METRICS))
        records.append(record)
    numbers = [name for name in records[0] if name not in ("setting", "seeds")]
    frame = pd.DataFrame(records).astype(dict.fromkeys(numbers, float))
    logs = [name for name in frame if ", log " in name]
    if frame[logs].isna().all(axis=None):
        frame = frame.drop(columns=logs)
    return [
        Table(
            f"{experiment}_{dataset}",
            f"{title}: {dataset}",
            f'{caption} "Of the first" compares tests, over the seeds that both have.',
            frame,
            {name: change if name.endswith("of the first") else number for name in numbers},
            {
                f"{metric.upper()}, ours {name}": marks(compared, f"{split}/{metric}")
                for metric in METRICS
                for name, split in (("valid", "val"), ("test", "test"))
            },
            notes(compared),
            missing(experiment, dataset, compared),
        )
    ]


ABLATION = {
    "whole": "default",
    "no flip": "w/o partial flipping",
    "no gate": "w/o ds gate",
    "no gru": "w/o fe-gru",
}  # label -> the paper's


def ablation(rows: pd.DataFrame, dataset: str) -> list[Table]:
    """Tables 4 and 9."""
    table = paper("table4_table9_ablation")
    return _variants(
        rows,
        dataset,
        "table4_ablation",
        variant_label,
        "Tables 4 and 9, ablation",
        "SIGMA whole and without one of its parts.",
        lambda label, metric: lookup(table, metric, dataset=dataset, variant=ABLATION[label]),
        lambda label: "sigma" if label == "whole" else f"sigma {ABLATION[label]}",
    )


def layers(rows: pd.DataFrame, dataset: str) -> list[Table]:
    """Table 5."""

    def printed(label: str, metric: str) -> float | None:
        if metric not in (table := paper("table5_layers")):
            return None
        return lookup(table, metric, dataset=dataset, layers=int(label))

    return _variants(
        rows,
        dataset,
        "table5_layers",
        lambda job: job.override("model.num_layers") or "1",
        "Table 5, layers",
        "SIGMA of several layers.",
        printed,
    )


def r_label(job: Job) -> str:
    return job.override("model.r") or "5"


def _up_to_the_first_without_flip(compared: list[Line]) -> list[Line]:
    """Every r from the number of items read on flips nothing; one of them says so."""
    length = all_rows(compared)["dataset.max_length"].astype(float).max()
    last = min((r for line in compared if (r := int(line.label)) >= length), default=10**9)
    return [line for line in compared if len(line.rows) or int(line.label) <= last]


def flip_range(rows: pd.DataFrame, dataset: str) -> list[Table]:
    """Figure 5 as numbers."""
    names = {"50": "sigma w/o partial flipping", "0": "sigma flip 1-50"}
    return _variants(
        rows,
        dataset,
        "figure5_flip_range",
        r_label,
        "Figure 5, flip range",
        "SIGMA by r, the number of items that the flip leaves in place.",
        log_name=lambda label: names.get(label, f"sigma flip 1-{50 - int(label)}"),
        choose=_up_to_the_first_without_flip,
    )


def released(rows: pd.DataFrame, dataset: str) -> list[Table]:
    """What each defect of the released code costs."""
    return _variants(
        rows,
        dataset,
        "released_vs_paper",
        variant_label,
        "Released code and paper",
        "The released SIGMA as it is (whole), with one defect mended at a time, and the paper's.",
    )
