"""Tables 2, 4, 5 and 9 and Figure 5 from result rows: paper, authors' log and ours."""

from collections.abc import Callable

from experiments.cells import change_cell, line_marks, minus, number, number_cell, spread_cell
from experiments.grid import Job
from experiments.ledger import METRICS, Ledger, check_protocol
from experiments.lines import (
    Line,
    lines,
    missing,
    model_label,
    on_common_seeds,
    protocol_note,
    variant_label,
    vintage_notes,
)
from experiments.paper.values import logged, lookup, paper
from experiments.render import Cell, Table
from experiments.significance import holm, over_seeds, over_users

FAR = 0.05  # a difference from an authors' or independent number that wants a word
LEVEL = 0.05  # of significance


def overall(ledger: Ledger, dataset: str) -> list[Table]:
    """Table 2 of one data set: a table a metric, and the tests of SIGMA against each baseline."""
    own = lines(ledger, model_label, "experiment=table2_overall", f"dataset={dataset}")
    asked = {
        experiment: lines(ledger, model_label, f"experiment={experiment}", f"dataset={dataset}")
        for experiment in ("relatives", "yardsticks")
    }
    everyone = own + [line for beside in asked.values() for line in beside if line.rows]
    check_protocol(f"Table 2, {dataset},", [row for line in everyone for row in line.rows])
    if not any(line.rows for line in everyone):
        return []
    tables = [_metric_table(dataset, metric, everyone) for metric in METRICS]
    tables[0].notes.extend(protocol_note(everyone))
    tables[0].notes.extend(vintage_notes([row for line in everyone for row in line.rows]))
    tables[0].missing.extend(missing("table2_overall", dataset, own))
    for experiment, beside in asked.items():
        tables[0].missing.extend(missing(experiment, dataset, beside, everyone))
    tests = _tests(dataset, everyone)
    return [*tables, tests] if tests.rows else tables


def _metric_table(dataset: str, metric: str, everyone: list[Line]) -> Table:
    table2, independent = paper("table2_overall"), paper("independent")
    valid_marks, test_marks = (line_marks(everyone, split, metric) for split in ("val", "test"))
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
        for what, ours, theirs in (("best validation", valid, log_valid), ("test", test, log_test)):
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
        f"Table 2, {dataset}: {metric.upper()}",
        "Full ranking; mean ± standard deviation over seeds. The paper's numbers are mostly best "
        "validation scores, so they stand beside those, but some are of a test (the README says "
        "which). Differences are from the log; of validation, from the paper where there is no "
        "log. The independent results of Mamba4Rec on Beauty begin with the authors' log's own.",
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
    rows = []
    for line, (difference, p_users, n_users), p_holm in zip(
        others, by_user, corrected, strict=True
    ):
        p_seeds, n = over_seeds(sigma.rows, line.rows, metric)
        p_text = "–" if p_users is None else _p(p_users)
        rows.append(
            [
                Cell(line.label),
                change_cell(*on_common_seeds(sigma, line, "test", metric)),
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
        "One-sided paired t-tests of SIGMA being larger: over seeds (the paper says one-sided, "
        "not over what), and over test users (each user's metric averaged over seeds), "
        "Holm-corrected for the number of models compared. Users tell trained models apart, not "
        "methods: another seed is another model. The improvement is that of the means over the "
        "seeds both have.",
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
    printed: Callable[[str, str], float | None] = lambda label, metric: None,
    in_log: Callable[[str], str] | None = None,
    kept: Callable[[list[Line]], list[Line]] = list,
) -> list[Table]:
    """Settings of one model as lines, every metric as columns: Tables 4, 5 and 9 and the like.

    Args:
        printed: (label, metric) -> the paper's number, or None.
        in_log: label -> what the authors' log calls that run; None where it has none of them.
        kept: of the experiment's lines, those that mean something for the rows there are.
    """
    # All of them are of SIGMA; composing an experiment's runs takes seconds.
    own = (row for row in ledger.rows if row.dataset == dataset and row.model.startswith("sigma"))
    if len({row.setting for row in own if not row.aside}) < 2:
        return []  # nothing to compare
    found = kept(lines(ledger, label, f"experiment={experiment}", f"dataset={dataset}"))
    check_protocol(f"{title}, {dataset},", [row for line in found for row in line.rows])
    if sum(bool(line.rows) for line in found) < 2:
        return []
    columns = ["setting"]
    cells: list[list[Cell]] = [[Cell(line.label)] for line in found]
    logs = {
        (line.label, metric, split): logged(dataset, in_log(line.label), metric, split)
        for line in found
        for metric in METRICS
        for split in ("valid", "test")
        if in_log is not None
    }
    with_log = any(value is not None for value in logs.values())
    for metric in METRICS:
        columns += [
            f"{metric.upper()}, {what}"
            for what in ("paper", *(["log valid", "log test"] * with_log), "ours valid",
                         "ours test", "of the first")
        ]  # fmt: skip
        valid, test = (line_marks(found, split, metric) for split in ("val", "test"))
        for at, line in enumerate(found):
            cells[at].append(number_cell(printed(line.label, metric)))
            if with_log:
                cells[at] += [
                    number_cell(logs[line.label, metric, split]) for split in ("valid", "test")
                ]
            cells[at] += [
                spread_cell(line, "val", metric, valid[at]),
                spread_cell(line, "test", metric, test[at]),
                change_cell(*on_common_seeds(line, found[0], "test", metric)) if at else Cell("–"),
            ]
    name = f"{experiment}_{dataset}"
    left = missing(experiment, dataset, found)
    notes = protocol_note(found) + vintage_notes([row for line in found for row in line.rows])
    caption += ' "Of the first" compares tests, over the seeds that both have.'
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
        lambda label: {"default": "sigma"}.get(names[label], f"sigma {names[label]}"),
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


def _up_to_the_first_without_flip(found: list[Line]) -> list[Line]:
    """Every r from the number of items read on flips nothing; one of them says so."""
    lengths = {int(row.protocol["dataset.max_length"]) for line in found for row in line.rows}
    longest = max(lengths, default=10**9)
    last = min((r for line in found if (r := int(line.label)) >= longest), default=longest)
    return [line for line in found if line.rows or int(line.label) <= last]


def flip_range(ledger: Ledger, dataset: str) -> list[Table]:
    """Figure 5 as numbers."""
    return variants(
        ledger, dataset, "figure5_flip_range", lambda job: job.chosen("model.r") or "5",
        "Figure 5, flip range", "SIGMA by r, the number of items that the flip leaves in place.",
        in_log=lambda label: {"50": "sigma w/o partial flipping", "0": "sigma flip 1-50"}.get(
            label, f"sigma flip 1-{50 - int(label)}"
        ),
        kept=_up_to_the_first_without_flip,
    )  # fmt: skip


def released(ledger: Ledger, dataset: str) -> list[Table]:
    """What each defect of the released code costs."""
    return variants(
        ledger, dataset, "released_vs_paper", variant_label, "Released code and paper",
        "The released SIGMA as it is (whole), with one defect mended at a time, and the paper's.",
    )  # fmt: skip
