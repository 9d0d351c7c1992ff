"""Every table and figure of the paper from whatever rows there are, ours beside theirs."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from experiments.paper.values import paper
from experiments.ranks import RESULTS
from experiments.report import figures, others, searches, variants
from experiments.report.page import Part, Table, write
from experiments.report.rankings import selected
from experiments.report.strong import strong
from experiments.report.tables import COMPARISONS, compare
from experiments.rows import MixedProtocolError, frame
from sigma.files import atomic_path
from sigma.runs.files import CONF

TITLE = "SIGMA: paper, authors' logs and ours"
MAKERS: dict[str, Callable[[pd.DataFrame, str], list[Table]]] = {
    name: partial(compare, comparison) for name, comparison in COMPARISONS.items()
}
MAKERS["strong"] = strong
MAKERS["table6_case_study"] = others.case_studies
FRONT = ("beauty", "ml_1m", "ml_100k", "ml_latest_small")  # data sets of the first page
FRONT_TEXT = (
    "Test and best validation NDCG@10 beside the paper's and its authors' logs, which rank the "
    "target among all items; then test HR, NDCG and MRR under both rankings, among all items and "
    "among those that the user has not had. [Which model to use when, and what of the paper holds]"
    "(../docs/results.md#which-model-to-use-when) says it in words. All tables, figures and runs: "
    "`python -m experiments.report`. This page is written by `python -m experiments.collect`."
)


def known_datasets(rows: pd.DataFrame) -> list[str]:
    """Data sets with rows, the paper's first; those without a YAML (custom) are left out."""
    order = list(paper("table1_datasets")["dataset"])
    names = sorted(rows[~rows["aside"].astype(bool)]["dataset"].unique())
    ordered = [name for name in order if name in names] + [n for n in names if n not in order]
    return [name for name in ordered if (CONF / "dataset" / f"{name}.yaml").is_file()]


def parts(rows: pd.DataFrame, folder: Path) -> list[Part]:
    """All there is to show; figures are drawn into ``folder``.

    Raises:
        MixedProtocolError: rows that must not stand in one column; nothing is drawn then.
    """
    datasets = known_datasets(rows)
    tables = {
        (experiment, dataset): group
        for dataset in datasets
        for experiment, make in MAKERS.items()
        if (group := make(rows, dataset))
    }
    rest = {
        "Which part of SIGMA helps": variants.tables(rows, datasets),
        "Every model searched alike": searches.budgets(rows),
        "Other papers": others.echomamba4rec(rows),
        "Efficiency": [
            *others.efficiency(RESULTS / "benchmarks" / "tables_efficiency.csv"),
            *others.aside(rows),
        ],
        "Not run yet": others.not_run(present(rows, tables)),
        "Runs": [others.runs(rows)],
    }
    content: list[Part] = [("Data", [others.datasets(rows), others.user_groups(rows)], {})]
    for (experiment, dataset), group in tables.items():
        pictures = figures.draw(rows, experiment, dataset, folder)
        content.append((f"{dataset}: {experiment.replace('_', ' ')}", group, pictures))
    drawn = {"Every model searched alike": searches.pictures(rows, folder)}
    return content + [(title, rest[title], drawn.get(title, {})) for title in rest if rest[title]]


def present(rows: pd.DataFrame, tables: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Experiments and data sets whose missing runs a table lists, or that list none."""
    beside = {
        (name, dataset)
        for experiment, dataset in tables
        for name in (COMPARISONS[experiment].beside if experiment in COMPARISONS else ())
    }
    speed = {("table3_efficiency", name) for name in rows[rows["group"] == "table3"]["dataset"]}
    helping = {("parts", name) for name in rows["dataset"] if variants.has_rows(rows, name)}
    return {*tables, *beside, *speed, *helping}


def provenance(rows: pd.DataFrame) -> str:
    """Where the numbers come from."""
    if rows.empty:
        return "There are no rows yet; nothing is filled in."
    commits = sorted(rows["commit"].fillna("unknown").str[:7].unique())
    return (
        f"{len(rows)} runs of commits {', '.join(commits)} on "
        f"{', '.join(sorted(rows['device'].unique()))}, the last of {rows['finished'].max()[:10]}."
        "\n\nEvery number is of a row, of the benchmark its caption names, or of a source named "
        "above its column. Validation is of the best epoch, by which the test's checkpoint is "
        "chosen. A dash is a number that there is not, or not of this very model (the authors' "
        "log's Mamba4Rec has one layer, which is another line); nothing is filled in."
    )


def build(folder: Path, rows: pd.DataFrame | None = None, formats: Sequence[str] = ()) -> None:
    """Write ``report.md``, ``figures/*.svg`` and ``tables/*.csv`` (and ``html``, ``latex``), by
    default of the committed rows.

    Raises:
        MixedProtocolError: rows that must not stand in one column; nothing is written then.
    """
    rows = frame() if rows is None else rows
    content = parts(rows, folder / "figures")
    write(folder, [f"# {TITLE}", provenance(rows)], content, formats)


def front_page(folder: Path) -> None:
    """Write the first page of a folder of results: ``README.md`` and ``overall.svg``."""
    rows = frame([folder])
    text = ["# Results", provenance(rows), FRONT_TEXT]
    overall, numbers = COMPARISONS["table2_overall"], []
    for dataset in (name for name in FRONT if name in set(rows["dataset"])):
        text.append(f"## {dataset}")
        try:
            tables = [*compare(overall, rows, dataset), *strong(rows, dataset)]
        except MixedProtocolError as error:
            text.append(str(error))
            continue
        numbers.append(figures.sources(dataset, overall.lines(selected(rows), dataset)))
        for table in tables:
            if table.name.endswith("_ndcg10"):
                text += [table.markdown(), *replace(table, notes=tables[0].notes).remarks]
            elif table.name.endswith(("_rankings_test", f"strong_{dataset}_test")):
                text += [f"### {table.title}", table.caption, table.markdown(), *table.remarks]
    if numbers:
        every = pd.concat(numbers, ignore_index=True)
        every = every[(every["metric"] == "NDCG@10") & ~every["source"].isin(figures.VALID)]
        picture = figures.against(every, folder / "overall.svg", "dataset")
        text[3:3] = [f"![{title}]({path.name})" for title, path in picture.items()]
    with atomic_path(folder / "README.md") as unfinished:
        unfinished.write_text("\n\n".join(text) + "\n", encoding="utf-8")
