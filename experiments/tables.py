"""The paper's tables from result rows: paper, authors' log and ours beside each other."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.grid import CONF, Job, expand
from experiments.ledger import (
    METRICS,
    Ledger,
    Row,
    check_protocol,
    holm,
    is_protocol,
    mean_sd,
    over_seeds,
    over_users,
    setting,
)
from experiments.render import Cell, Table
from sigma.identity import identity

PAPER = Path(__file__).parent / "paper"
NAMES = {"hr@10": "HR@10", "ndcg@10": "NDCG@10", "mrr@10": "MRR@10"}
FAR = 0.05  # a difference from an authors' or independent number that wants a word
LEVEL = 0.05  # of significance


@cache
def paper(name: str) -> pd.DataFrame:
    """One of the files in ``experiments/paper/``."""
    return pd.read_csv(PAPER / f"{name}.csv", comment="#")


@cache
def jobs_of(*overrides: str) -> tuple[Job, ...]:
    """``expand``, composed once a process."""
    return tuple(expand(overrides))


@dataclass(frozen=True)
class Line:
    """One line of a table: a setting, the seeds asked of it, and the rows there are.

    Attributes:
        label: model or variant.
        job: the first of its runs.
        asked: number of seeds the experiment asks for.
        rows: those found, by seed.
    """

    label: str
    job: Job
    asked: int
    rows: list[Row]

    def spread(self, split: str, metric: str) -> tuple[float | None, float | None, int]:
        """Mean, standard deviation and number of seeds."""
        return mean_sd([row.metric(split, metric) for row in self.rows])


def lines(ledger: Ledger, label: Callable[[Job], str], *overrides: str) -> list[Line]:
    """The settings of an experiment in their order, with what there is of each."""
    found: dict[str, list[Job]] = defaultdict(list)
    for job in jobs_of(*overrides):
        found[setting(job.config)].append(job)
    return [
        Line(label(jobs[0]), jobs[0], len(jobs), ledger.rows_of(jobs[0].config))
        for jobs in found.values()
    ]


def model_label(job: Job) -> str:
    return job.model


def variant_label(job: Job) -> str:
    return (job.chosen("variant") or "whole").replace("_", " ")


def departures(found: Sequence[Line]) -> dict[str, str]:
    """Where the rows' protocol is not the experiment's own: overrides that make it, and its own.

    All rows are of one protocol, see ``check_protocol``; a trained one tells all of it.
    """
    rows = [(line, row) for line in found for row in line.rows]
    if not rows:
        return {}
    line, row = max(rows, key=lambda pair: bool(pair[1].content["parameters"]))
    own = identity(line.job.config)
    keys = {key for key in row.protocol.keys() | own.keys() if is_protocol(key)}
    if not row.content["parameters"]:  # its protocol has no stopping rule
        keys &= row.protocol.keys()
    keys.discard("model.max_length")  # follows the data's
    return {
        f"{key}={_override(row.protocol.get(key))}": _override(own.get(key))
        for key in sorted(keys)
        if row.protocol.get(key) != own.get(key)
    }


def _override(value: object) -> str:
    return json.dumps(value, separators=(",", ":")).strip('"')


def protocol_note(found: Sequence[Line]) -> list[str]:
    """The sentence on ``departures``, or none."""
    told = [f"{made} (not {own})" for made, own in departures(found).items()]
    return [f"Protocol of these runs, where not the experiment's: {', '.join(told)}."] * bool(told)


def missing(experiment: str, dataset: str, found: Sequence[Line]) -> list[str]:
    """The one command that adds the seeds that are not there, or none."""
    asked = sum(line.asked for line in found)
    there = sum(min(line.asked, len(line.rows)) for line in found)
    if there >= asked:
        return []
    words = [f"experiment={experiment}", f"dataset={dataset}", *departures(found)]
    return [f"python train.py -m {' '.join(words)}  # {asked - there} of {asked} runs are missing"]


def number(value: float | None, digits: int = 4) -> str:
    """``.0737``; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def spread_cell(line: Line, split: str, metric: str, mark: str = "") -> Cell:
    """Mean ± standard deviation, and how many seeds where fewer than asked."""
    mean, deviation, n = line.spread(split, metric)
    if mean is None:
        return Cell("–")
    text = number(mean) + (f" ± {number(deviation)}" if deviation is not None else "")
    return Cell(text, mean, mark, f"{n} of {line.asked} seeds" if n < line.asked else "")


def number_cell(value: float | None) -> Cell:
    return Cell(number(value), value)


def minus(text: str) -> str:
    """With the sign that is as wide as a plus."""
    return text.replace("-", "−")


def change_cell(ours: float | None, theirs: float | None) -> Cell:
    """Relative difference in per cent."""
    if ours is None or not theirs:
        return Cell("–")
    change = ours / theirs - 1
    return Cell(minus(f"{change:+.1%}"), change)


def marks(values: Sequence[float | None]) -> list[str]:
    """Best and second best; equals share a mark."""
    ranked = sorted({v for v in values if v is not None}, reverse=True)
    names = dict(zip(ranked, ("best", "second"), strict=False))
    return [names.get(v, "") if v is not None else "" for v in values]


def lookup(frame: pd.DataFrame, column: str, **where: object) -> float | None:
    """The one value of a paper's file, None where it has none (the last of several)."""
    for key, value in where.items():
        frame = frame[frame[key] == value]
    values = frame[column].dropna()
    return float(values.iloc[-1]) if len(values) else None


def logged(dataset: str, model: str, metric: str, split: str) -> float | None:
    """The authors' log; its Mamba4Rec has one layer, its SIGMA is the released code."""
    name = {"linrec": "linrec (printed as sasrec in table 2)"}.get(model, model)
    frame = paper("authors_log")
    if (dataset, model) == ("beauty", "sigma"):
        frame = frame[frame["notebook_cell"] == 66]  # the run Table 2 prints
    return lookup(frame, f"{split}_{metric}", dataset=dataset, model=name)


def overall(ledger: Ledger, dataset: str) -> list[Table]:
    """Table 2 of one data set: a table a metric, and the tests of SIGMA against each baseline."""
    own = lines(ledger, model_label, "experiment=table2_overall", f"dataset={dataset}")
    beside = [
        line
        for experiment in ("relatives", "yardsticks")
        for line in lines(ledger, model_label, f"experiment={experiment}", f"dataset={dataset}")
        if line.rows
    ]
    everyone = own + beside
    check_protocol(f"Table 2, {dataset},", [row for line in everyone for row in line.rows])
    if not any(line.rows for line in everyone):
        return []
    tables = [_metric_table(dataset, metric, everyone) for metric in METRICS]
    tables[0].notes.extend(protocol_note(everyone))
    tables[0].missing.extend(missing("table2_overall", dataset, own))
    tests = _tests(dataset, everyone)
    return [*tables, tests] if tests.rows else tables


def _metric_table(dataset: str, metric: str, everyone: list[Line]) -> Table:
    table2, independent = paper("table2_overall"), paper("independent")
    valid_marks = marks([line.spread("val", metric)[0] for line in everyone])
    test_marks = marks([line.spread("test", metric)[0] for line in everyone])
    rows, notes = [], []
    for line, best_valid, best_test in zip(everyone, valid_marks, test_marks, strict=True):
        printed = lookup(table2, "value", dataset=dataset, model=line.label, metric=metric)
        log_valid = logged(dataset, line.label, metric, "valid")
        log_test = logged(dataset, line.label, metric, "test")
        where = {"dataset": dataset, "model": line.label, "metric": metric}
        low, high = lookup(independent, "low", **where), lookup(independent, "high", **where)
        valid, test = line.spread("val", metric)[0], line.spread("test", metric)[0]
        between = number(low) if low == high else f"{number(low)} – {number(high)}"
        rows.append(
            [
                Cell(line.label),
                number_cell(printed),
                number_cell(log_valid),
                spread_cell(line, "val", metric, best_valid),
                change_cell(valid, log_valid if log_valid is not None else printed),
                number_cell(log_test),
                Cell(between, low),
                spread_cell(line, "test", metric, best_test),
                change_cell(test, log_test),
            ]
        )
        for what, ours, theirs in (
            ("best validation", valid, log_valid),
            ("test", test, log_test),
        ):
            if ours is not None and theirs and abs(ours / theirs - 1) > FAR:
                notes.append(
                    f"{line.label}: {what} {number(ours)} is "
                    f"{minus(f'{ours / theirs - 1:+.1%}')} off the authors' log ({number(theirs)})."
                )
        if test is not None and low is not None and test < low * (1 - FAR):
            notes.append(
                f"{line.label}: test {number(test)} is {1 - test / low:.1%} below the "
                f"independent results ({between})."
            )
    return Table(
        f"table2_{dataset}_{metric.replace('@', '')}",
        f"Table 2, {dataset}: {NAMES[metric]}",
        "Full ranking; mean ± standard deviation over seeds. The paper's numbers are mostly best "
        "validation scores, so they stand beside those. Differences are from the log; of "
        "validation, from the paper where there is no log.",
        [
            "model",
            "paper",
            "authors' log, valid",
            "ours, valid",
            "difference, valid",
            "authors' log, test",
            "independent, test",
            "ours, test",
            "difference, test",
        ],
        rows,
        notes,
    )


def _tests(dataset: str, everyone: list[Line]) -> Table:
    """SIGMA against every other model, by seeds and by users."""
    sigma = next(line for line in everyone if line.label == "sigma")
    metric = "ndcg@10"
    others = [line for line in everyone if line.label != "sigma" and line.rows and sigma.rows]
    by_user = [over_users(sigma.rows, line.rows, metric) for line in others]
    corrected = holm([p for _, p, _ in by_user])
    ours = sigma.spread("test", metric)[0]
    rows = []
    for line, (difference, p_users, n_users), p_holm in zip(
        others, by_user, corrected, strict=True
    ):
        p_seeds, n = over_seeds(sigma.rows, line.rows, metric)
        p_text = "–" if p_users is None else _p(p_users)
        rows.append(
            [
                Cell(line.label),
                change_cell(ours, line.spread("test", metric)[0]),
                Cell("–" if p_seeds is None else _p(p_seeds), p_seeds, "", f"{seeds(n)} in common"),
                Cell("–" if difference is None else minus(f"{difference:+.4f}"), difference),
                Cell(p_text, p_users, "", f"{seeds(n_users)} with ranks" if n_users else ""),
                Cell("–" if p_holm is None else _p(p_holm), p_holm),
                Cell("–" if p_holm is None else ("yes" if p_holm < LEVEL else "no")),
            ]
        )
    return Table(
        f"table2_{dataset}_tests",
        f"Table 2, {dataset}: is SIGMA better? (test NDCG@10)",
        "One-sided paired t-tests of SIGMA being larger: over seeds, as in the paper, and over "
        "test users (each user's metric averaged over seeds), Holm-corrected for the number of "
        "models compared. Users tell trained models apart, not methods: another seed is another "
        "model.",
        [
            "against",
            "improvement",
            "p over seeds",
            "mean difference per user",
            "p over users",
            "p over users, corrected",
            "significant",
        ],
        rows,
    )


def seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _p(value: float) -> str:
    return "< .0001" if value < 1e-4 else number(value)


def variants(
    ledger: Ledger,
    dataset: str,
    experiment: str,
    label: Callable[[Job], str],
    title: str,
    caption: str,
    printed: Callable[[str, str], float | None],
) -> list[Table]:
    """Settings of one model as lines, every metric as columns: Tables 4, 5 and 9 and the like.

    Args:
        printed: (label, metric) -> the paper's number, or None.
    """
    found = lines(ledger, label, f"experiment={experiment}", f"dataset={dataset}")
    check_protocol(f"{title}, {dataset},", [row for line in found for row in line.rows])
    if sum(bool(line.rows) for line in found) < 2:
        return []  # nothing to compare
    columns = ["setting"]
    cells: list[list[Cell]] = [[Cell(line.label)] for line in found]
    for metric in METRICS:
        columns += [
            f"{NAMES[metric]}, {what}"
            for what in ("paper", "ours valid", "ours test", "of the first")
        ]
        valid = marks([line.spread("val", metric)[0] for line in found])
        test = marks([line.spread("test", metric)[0] for line in found])
        first = found[0].spread("test", metric)[0]
        for at, line in enumerate(found):
            cells[at] += [
                number_cell(printed(line.label, metric)),
                spread_cell(line, "val", metric, valid[at]),
                spread_cell(line, "test", metric, test[at]),
                change_cell(line.spread("test", metric)[0], first) if at else Cell("–"),
            ]
    name = f"{experiment}_{dataset}"
    left = missing(experiment, dataset, found)
    notes = protocol_note(found)
    return [Table(name, f"{title}: {dataset}", caption, columns, cells, notes, left)]


def ablation(ledger: Ledger, dataset: str) -> list[Table]:
    """Tables 4 and 9."""
    names = {
        "whole": "default",
        "no flip": "w/o partial flipping",
        "no gate": "w/o ds gate",
        "no gru": "w/o fe-gru",
    }
    return variants(
        ledger, dataset, "table4_ablation", variant_label, "Tables 4 and 9, ablation",
        "SIGMA whole and without one of its parts.",
        lambda label, metric: lookup(
            paper("table4_table9_ablation"), metric, dataset=dataset, variant=names[label]
        ),
    )  # fmt: skip


def layers(ledger: Ledger, dataset: str) -> list[Table]:
    """Table 5."""
    return variants(
        ledger, dataset, "table5_layers", lambda job: job.chosen("model.num_layers") or "1",
        "Table 5, layers", "SIGMA of several layers.",
        lambda label, metric: None if metric == "mrr@10" else lookup(
            paper("table5_layers"), metric, dataset=dataset, layers=int(label)
        ),
    )  # fmt: skip


def flip_range(ledger: Ledger, dataset: str) -> list[Table]:
    """Figure 5 as numbers."""
    return variants(
        ledger, dataset, "figure5_flip_range", lambda job: job.chosen("model.r") or "5",
        "Figure 5, flip range", "SIGMA by r, the number of items that the flip leaves in place.",
        lambda label, metric: None,
    )  # fmt: skip


def released(ledger: Ledger, dataset: str) -> list[Table]:
    """What each defect of the released code costs."""
    return variants(
        ledger, dataset, "released_vs_paper", variant_label, "Released code and paper",
        "The released SIGMA as it is (whole), with one defect mended at a time, and the paper's.",
        lambda label, metric: None,
    )  # fmt: skip


def datasets(ledger: Ledger) -> list[Table]:
    """Table 1: what the paper says and what the runs found."""
    printed = paper("table1_datasets").set_index("dataset")
    found: dict[tuple[str, int, int, int], Row] = {}
    for row in ledger.rows:
        data = row.content["data"]
        found.setdefault((row.dataset, data["users"], data["items"], data["interactions"]), row)
    names = [*printed.index, *sorted({key[0] for key in found} - set(printed.index))]
    rows = []
    for name in names:
        there = [row for key, row in found.items() if key[0] == name] or [None]
        for row in there:
            data = row.content["data"] if row else {}
            there_is = name in printed.index
            rows.append(
                [
                    Cell(name),
                    *(
                        _count(int(printed.loc[name, key]) - 1 if there_is else None)
                        for key in ("users", "items")
                    ),
                    *(_count(data.get(key)) for key in ("users", "items", "interactions")),
                    Cell(f"{data['average_length']:.2f}" if data else "–",
                         data.get("average_length")),
                    Cell(f"{data['sparsity']:.2%}" if data else "–", data.get("sparsity")),
                    *(_count(data.get(f"{split}_samples")) for split in ("train", "test")),
                ]
            )  # fmt: skip
    absent = [name for name in printed.index if name not in {key[0] for key in found}]
    return [
        Table(
            "table1_datasets", "Table 1: data sets",
            "Counts after filtering. The paper's users and items are less the padding row its "
            "table counts.",
            ["data set", "users, paper", "items, paper", "users", "items", "interactions",
             "per user", "sparsity", "training samples", "test samples"],
            rows, [],
            [f"python train.py -m experiment=table1_datasets dataset={name}" for name in absent],
        )
    ]  # fmt: skip


def _count(value: Any) -> Cell:
    return Cell("–") if value is None else Cell(f"{int(value):,}", float(value))


GROUPS = {"short": (0, 5), "medium": (5, 20), "long": (20, 10**9)}


def group_counts(row: Row, later: int = 0) -> dict[str, int] | None:
    """Test users of each group of the paper; None without ranks.

    Args:
        later: items less in the history: 1 counts validation samples.
    """
    if row.ranks is None:
        return None
    lengths = row.ranks["history_length"] - later
    return {
        name: int(((lengths >= low) & (lengths < high)).sum())
        for name, (low, high) in GROUPS.items()
    }


def user_groups(ledger: Ledger) -> list[Table]:
    """Table 8: users by length of history, of validation and test."""
    printed = paper("table8_user_groups").set_index("dataset")
    rows = []
    seen = {row.dataset: row for row in ledger.rows if row.ranks is not None}
    for name in dict.fromkeys([*printed.index, *sorted(seen)]):
        test = group_counts(seen[name]) if name in seen else None
        valid = group_counts(seen[name], 1) if name in seen else None
        told = printed.loc[name].tolist() if name in printed.index else [None] * 3
        counts = [[(part or {}).get(group) for group in GROUPS] for part in (valid, test)]
        rows.append([Cell(name), *map(_count, [*told, *counts[0], *counts[1]])])
    columns = ["data set"]
    columns += [f"{g}, {s}" for s in ("paper", "valid", "test") for g in GROUPS]
    absent = [name for name in printed.index if name not in seen]
    return [
        Table(
            "table8_groups", "Table 8: users by length of history",
            "Short [0, 5), medium [5, 20), long [20, …) items before the target. The paper's Yelp "
            "counts are those of the validation split.",
            columns, rows, [],
            [f"python train.py -m experiment=table8_groups dataset={name}" for name in absent],
        )
    ]  # fmt: skip


def efficiency(path: Path) -> list[Table]:
    """Tables 3, 5 and 7 from the benchmark's file, if it is there."""
    if not path.is_file():
        return []
    frame = pd.read_csv(path)
    rows = [
        [
            Cell(str(line.table)),
            Cell(str(line.dataset)),
            Cell(str(line.model)),
            _value(line.infer_ms, "{:,.0f}"),
            _value(line.infer_ms_of_sigma, "{:.2f}"),
            _value(line.train_ms, "{:,.0f}"),
            _value(line.train_process_mib, "{:,.0f}"),
            _value(line.paper_ms, "{:,.0f}"),
            _value(line.paper_ms_of_sigma, "{:.2f}"),
            _value(line.paper_gpu_gb, "{:.2f}"),
        ]
        for line in frame.itertuples()
    ]
    return [
        Table(
            "table3_efficiency", "Tables 3, 5 and 7: efficiency",
            "Milliseconds for a batch (4,096 users ranked; 2,048 samples learned) on this machine "
            "and, the paper's, on an NVIDIA L4: compare the ratios to SIGMA. "
            f"{', '.join(sorted(set(frame['stamp'])))}.",
            ["table", "data set", "model", "ranking, ms", "of SIGMA's", "training, ms",
             "training, MiB", "paper, ms", "paper, of SIGMA's", "paper, GB"],
            rows, [], ["python -m experiments.benchmark_tables"],
        )
    ]  # fmt: skip


def _value(value: Any, form: str) -> Cell:
    return Cell("–") if pd.isna(value) else Cell(form.format(float(value)), float(value))


def case_study(path: Path) -> Table:
    """Table 6 of one user, from what ``experiments.case_study`` wrote.

    Args:
        path: ``case_<user>.json``, its ``.csv`` beside it.
    """
    told = json.loads(path.read_text(encoding="utf-8"))
    frame = pd.read_csv(path.with_suffix(".csv"))
    rows = [
        [
            Cell(str(line["model"])),
            _value(line["rank"], "{:,g}"),
            *(number_cell(line[m]) for m in METRICS),
            *(number_cell(line[f"all users {m}"]) for m in METRICS),
        ]
        for line in frame.to_dict("records")
    ]
    columns = ["model", "rank of the next item", *NAMES.values()]
    columns += [f"{name} of all users" for name in NAMES.values()]
    name = re.sub(r"[^\w.-]+", "_", f"table6_{told['dataset']}_{told['user']}")
    title = f"Table 6, case study: user {told['user']} of {told['dataset']}"
    return Table(name, title, " ".join(told["caption"]), columns, rows, [told["note"]])


def provenance(ledger: Ledger) -> list[Table]:
    """Every run behind the numbers."""
    rows = []
    for row in ledger.rows:
        c = row.content
        commit = str(c["git"]["commit"] or "–")[:7] + ("+" if c["git"]["dirty"] else "")
        hardware = c["hardware"].get("gpu") or f"{c['hardware']['cpu']}, {c['hardware']['threads']}"
        best = c["best_epoch"]
        rows.append(
            [
                Cell(row.run_id),
                Cell(str(row.seed), row.seed),
                Cell("–" if best is None else f"{best:.0f} of {c['epochs']}", best),
                _value(c["efficiency"].get("train_seconds"), "{:,.0f}"),
                Cell(commit),
                Cell(hardware),
                Cell(str(c["versions"].get("torch", "–"))),
                Cell(str(c["finished"])[:10]),
            ]
        )
    return [
        Table(
            "runs", "Every run", "A commit with + had changes that were not committed.",
            ["run", "seed", "best epoch", "training, s", "commit", "hardware, threads", "torch",
             "finished"],
            rows,
        )
    ]  # fmt: skip


def known_datasets(ledger: Ledger) -> list[str]:
    """Data sets with rows, the paper's first; those without a YAML (custom) are left out."""
    order = list(paper("table1_datasets")["dataset"])
    there = {row.dataset for row in ledger.rows}
    named = [name for name in there if (CONF / "dataset" / f"{name}.yaml").is_file()]
    return sorted(named, key=lambda n: (order.index(n) if n in order else len(order), n))
