"""Every table and figure of the paper from whatever rows there are, ours beside theirs.

    python -m experiments.report                         results/rows -> results/report
    python -m experiments.report multirun results/rows --out report --where dataset.max_length=50

Writes report.md, index.html (one page that needs nothing else), tables/ as Markdown, LaTeX and CSV,
and figures/ as PNG and SVG. Rows of different protocols in one column are refused.
"""

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from experiments import figures, side_tables, tables
from experiments.ledger import Ledger, history_bins, narrowed, read
from experiments.lines import Line, lines, model_label, variant_label
from experiments.paper.values import logged, lookup, paper
from experiments.render import Section, Table, write
from experiments.significance import mean_sd
from sigma.runs.messages import explained

ROOT = Path(__file__).parents[1]
MAKES = {
    tables.overall: "table2_overall",
    tables.ablation: "table4_ablation",
    tables.layers: "table5_layers",
    tables.released: "released_vs_paper",
    tables.flip_range: "figure5_flip_range",
}
LENGTHS = (1, 4, 5, 6, 8, 10, 15, 20, 50)  # first lengths of Figure 1's bins


def overall(ledger: Ledger, dataset: str, folder: Path, found: list[Table]) -> Section:
    """Table 2 of one data set, ``found``, with its figures by history length."""
    compared = [
        line
        for line in lines(ledger, model_label, "experiment=table2_overall", f"dataset={dataset}")
        if line.rows
    ]
    drawn = [
        figures.paper_against_ours(against(dataset, compared), folder / f"table2_{dataset}"),
        figures.long_tail(long_tail(dataset, compared), folder / f"figure1_{dataset}"),
        figures.groups(grouped(dataset, compared, "model"), folder / f"figure3_{dataset}"),
    ]
    return section(f"table2_{dataset}", f"{dataset}: all models", "", found, drawn)


def section(
    name: str, title: str, text: str, found: list[Table], drawn: Sequence[Path | None]
) -> Section:
    return Section(name, title, text, found, [path for path in drawn if path is not None])


def against(dataset: str, found: list[Line]) -> pd.DataFrame:
    """Paper, log and ours, as ``figures.paper_against_ours`` wants them."""
    records = []
    for line in found:
        for metric in ("hr@10", "ndcg@10"):
            where = {"dataset": dataset, "model": line.label, "metric": metric}
            table2 = paper("table2_overall")
            values = {
                "paper": lookup(table2, "value", **where),
                "authors' log valid": logged(dataset, line.label, metric, "valid"),
                "authors' log test": logged(dataset, line.label, metric, "test"),
                "ours valid": line.spread("val", metric)[0],
                "ours test": line.spread("test", metric)[0],
            }
            records += [where | {"source": k, "value": v} for k, v in values.items()]
    return pd.DataFrame(records, columns=["dataset", "model", "metric", "source", "value"])


def long_tail(dataset: str, found: list[Line]) -> pd.DataFrame:
    """HR@10 of SASRec, Mamba4Rec and SIGMA by history length, mean over seeds."""
    records = []
    for line in found:
        if line.label not in ("sasrec", "mamba4rec", "sigma"):
            continue
        parts = [b for row in line.rows if (b := history_bins(row, LENGTHS)) is not None]
        if not parts:
            continue
        for place in range(len(parts[0])):
            values = [float(part["hr@10"].iloc[place]) for part in parts]
            mean, deviation, _ = mean_sd([v for v in values if v == v])
            one = parts[0].iloc[place]
            if one["users"]:
                records.append(
                    {"dataset": dataset, "bin": one["bin"], "users": one["users"],
                     "model": line.label, "hr@10": mean, "sd": deviation}
                )  # fmt: skip
    return pd.DataFrame(records, columns=["dataset", "bin", "users", "model", "hr@10", "sd"])


def grouped(dataset: str, found: list[Line], by: str) -> pd.DataFrame:
    """Test metrics by the paper's groups of users."""
    records = []
    counts = next(
        (
            c
            for line in found
            for row in line.rows
            if (c := side_tables.group_counts(row)) is not None
        ),
        {},
    )
    for line in found:
        for group in side_tables.GROUPS:
            for metric in ("hr@10", "ndcg@10"):
                mean, deviation, _ = line.spread("test", f"{group}/{metric}")
                if mean is not None:
                    records.append(
                        {"dataset": dataset, "group": group, "users": counts.get(group),
                         by: line.label, "metric": metric, "mean": mean, "sd": deviation}
                    )  # fmt: skip
    columns = ["dataset", "group", "users", by, "metric", "mean", "sd"]
    return pd.DataFrame(records, columns=columns)


def ablation(ledger: Ledger, dataset: str, folder: Path, found: list[Table]) -> Section | None:
    """Tables 4 and 9, ``found``, with Figure 4."""
    if not found:
        return None
    compared = lines(ledger, variant_label, "experiment=table4_ablation", f"dataset={dataset}")
    there = [line for line in compared if line.rows]
    frame = grouped(dataset, there, "variant")
    drawn = [figures.ablation_groups(frame, folder / f"figure4_{dataset}")]
    return section(f"table4_{dataset}", f"{dataset}: ablation", "", found, drawn)


def flip_range(ledger: Ledger, dataset: str, folder: Path, found: list[Table]) -> Section | None:
    """Figure 5 and its table, ``found``."""
    if not found:
        return None
    records = []
    for line in lines(
        ledger, lambda job: job.chosen("model.r") or "5",
        "experiment=figure5_flip_range", f"dataset={dataset}",
    ):  # fmt: skip
        for metric in ("hr@10", "ndcg@10"):
            for split in ("val", "test"):
                mean, deviation, n = line.spread(split, metric)
                if mean is not None:
                    records.append(
                        {"dataset": dataset, "r": int(line.label), "metric": metric,
                         "split": split, "mean": mean, "sd": deviation, "n": n}
                    )  # fmt: skip
    frame = pd.DataFrame(records)
    drawn = [figures.flip_range(frame, folder / f"figure5_{dataset}")]
    return section(f"figure5_{dataset}", f"{dataset}: flip range", "", found, drawn)


def case_studies(folder: Path) -> Section | None:
    """Table 6 and Figure 6, of whatever users ``experiments.case.__main__`` was asked for."""
    cases = sorted(folder.glob("**/case_*.json"))
    found = [side_tables.case_study(path) for path in cases]
    drawn = [path.with_suffix(".png") for path in cases]
    return section("case_study", "Case study", "", found, drawn) if found else None


def sections(ledger: Ledger, folder: Path, cases: Path) -> list[Section]:
    """All there is to show.

    Args:
        ledger: the rows.
        folder: to draw figures into.
        cases: of case studies, or not there.

    Raises:
        MixedProtocolError: rows that must not stand in one column.
    """
    benchmark = ROOT / "results" / "benchmarks" / "tables_efficiency.csv"
    # All that may be refused, before anything is drawn over an earlier report.
    tuned, context = side_tables.tuned(ledger), side_tables.context(ledger)
    names = side_tables.known_datasets(ledger)
    made = {
        dataset: {
            make: make(ledger, dataset)
            for make in MAKES
        }
        for dataset in tqdm(names, desc="Tables", leave=False)
    }  # fmt: skip
    data = [*side_tables.datasets(ledger), *side_tables.user_groups(ledger)]
    found: list[Section | None] = [section("data", "Data", "", data, [])]
    for dataset, own in tqdm(made.items(), desc="Figures", leave=False):
        found.append(overall(ledger, dataset, folder, own[tables.overall]))
        found.append(ablation(ledger, dataset, folder, own[tables.ablation]))
        for name, title, make in (
            ("table5", "layers", tables.layers),
            ("released", "released code and paper", tables.released),
        ):
            if own[make]:
                found.append(section(f"{name}_{dataset}", f"{dataset}: {title}", "", own[make], []))
        found.append(flip_range(ledger, dataset, folder, own[tables.flip_range]))
    if tuned:
        found.append(section("tuned", "Every model searched alike", "", tuned, []))
    if context:
        found.append(section("context", "Length of the context", "", context, []))
    found.append(case_studies(cases))
    if speed := [*side_tables.efficiency(benchmark), *side_tables.short_runs(ledger)]:
        found.append(section("efficiency", "Efficiency", "", speed, []))
    shown = {
        (MAKES[make], dataset)
        for dataset, own in made.items()
        for make, those in own.items()
        if those
    }
    shown |= {(str(r.content["config"].get("group")), r.dataset) for r in ledger.rows if r.aside}
    shown |= {("table3_efficiency", dataset) for group, dataset in shown if group == "table3"}
    shown |= {("table6_case_study", dataset) for dataset in side_tables.cases(cases)}
    if left := side_tables.not_run(shown):
        found.append(section("not_run", "Not run yet", "", left, []))
    found.append(
        section("runs", "Runs", "\n\n".join(ledger.notes), side_tables.provenance(ledger), [])
    )
    return [part for part in found if part is not None]


def told(ledger: Ledger) -> str:
    """Where the numbers come from, in two sentences."""
    commits = sorted({str(r.content["git"]["commit"] or "unknown")[:7] for r in ledger.rows})
    hardware = sorted({r.content["hardware"].get("gpu") or r.content["hardware"]["cpu"]
                       for r in ledger.rows})  # fmt: skip
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    made = done.stdout.strip() or "an unknown commit"
    if not ledger.rows:
        return f"Made at {made}. There are no rows yet; nothing is filled in."
    return (
        f"{len(ledger.rows)} runs of commits {', '.join(commits)} on {', '.join(hardware)}; made "
        f"at {made}.\n\nEvery number is of a row in the list of runs at the end, of the benchmark "
        "its caption names, or of a source named above its column. Validation is of the best "
        "epoch, by which the test's checkpoint is chosen. A dash is a number that there is not, or "
        "not of this very model (the authors' log's Mamba4Rec has one layer, and a line of its "
        "own); nothing is filled in."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "places", nargs="*", type=Path, default=[ROOT / "results" / "rows"],
        help="folders of rows or of runs",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "report")
    parser.add_argument(
        "--cases", type=Path, default=ROOT / "results" / "case_study",
        help="folder of case studies, see experiments.case.__main__",
    )  # fmt: skip
    parser.add_argument(
        "--where", nargs="*", default=[], metavar="key=value",
        help="only rows with this setting, such as dataset.max_length=50",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    ledger = narrowed(read(given.places), given.where)
    drawn = given.out / "figures"
    found = sections(ledger, drawn, given.cases)
    write(given.out, "SIGMA: paper, authors' logs and ours", told(ledger), found)
    for note in ledger.notes:
        print(note)
    print(f"{len(ledger.rows)} rows -> {given.out / 'index.html'}")


if __name__ == "__main__":
    with explained():
        main()
