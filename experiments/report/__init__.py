"""Every table and figure of the paper from whatever rows there are, ours beside theirs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from experiments.grid import CONF
from experiments.paper.values import paper
from experiments.ranks import RESULTS
from experiments.report import figures, others, tables
from experiments.report.lines import lines, model_label
from experiments.report.page import Part, markdown, write
from experiments.rows import MixedProtocolError, frame
from sigma.runs.files import atomic_path

TITLE = "SIGMA: paper, authors' logs and ours"
MAKERS = {
    "table2_overall": ("all models", tables.overall),
    **{name: (v.title, v.tables) for name, v in tables.VARIANTS.items()},
    "table6_case_study": ("case study", others.case_studies),
}  # experiment -> heading, and what makes its tables of rows and a data set
FRONT = ("beauty", "ml_1m", "ml_100k", "ml_latest_small")  # data sets of the first page


def known_datasets(rows: pd.DataFrame) -> list[str]:
    """Data sets with rows, the paper's first; those without a YAML (custom) are left out."""
    order = list(paper("table1_datasets")["dataset"])
    names = rows[~rows["aside"].astype(bool)]["dataset"].unique()
    named = [name for name in names if (CONF / "dataset" / f"{name}.yaml").is_file()]
    return sorted(named, key=lambda n: (order.index(n) if n in order else len(order), n))


def draw(rows: pd.DataFrame, experiment: str, dataset: str, folder: Path) -> dict[str, Path]:
    """An experiment's figures: what each shows, and its file."""
    if experiment == "table2_overall":
        words = (f"experiment={experiment}", f"dataset={dataset}")
        compared = [line for line in lines(rows, model_label, *words) if len(line.rows)]
        if not compared:
            return {}
        numbers = figures.sources(dataset, compared)
        return (
            figures.against(numbers, "metric", folder / f"table2_{dataset}")
            | figures.long_tail(dataset, compared, folder / f"figure1_{dataset}")
            | figures.groups(dataset, compared, folder / f"figure3_{dataset}")
        )
    if experiment == "table4_ablation":
        compared = tables.VARIANTS[experiment].lines(rows, dataset)
        return figures.groups(dataset, compared, folder / f"figure4_{dataset}")
    if experiment == "figure5_flip_range":
        compared = tables.VARIANTS[experiment].lines(rows, dataset)
        return figures.flip_range(dataset, compared, folder / f"figure5_{dataset}")
    return {}


def parts(rows: pd.DataFrame, folder: Path) -> list[Part]:
    """All there is to show; figures are drawn into ``folder``.

    Raises:
        MixedProtocolError: rows that must not stand in one column; nothing is drawn then.
    """
    benchmark = RESULTS / "benchmarks" / "tables_efficiency.csv"
    tuned, aside = others.tuned(rows), others.aside(rows)
    by_dataset = {
        (dataset, experiment): make(rows, dataset)
        for dataset in known_datasets(rows)
        for experiment, (_, make) in MAKERS.items()
    }
    content = [Part("Data", [others.datasets(rows), others.user_groups(rows)])]
    for (dataset, experiment), group in by_dataset.items():
        if group:
            pictures = draw(rows, experiment, dataset, folder)
            content.append(Part(f"{dataset}: {MAKERS[experiment][0]}", group, pictures))
    present = {
        (experiment, dataset) for (dataset, experiment), group in by_dataset.items() if group
    }
    short = rows[rows["group"] == "table3"]["dataset"]
    present |= {("table3_efficiency", dataset) for dataset in short}
    rest = {
        "Every model searched alike": tuned,
        "Efficiency": [*others.efficiency(benchmark), *aside],
        "Not run yet": others.not_run(present),
    }
    content += [Part(title, group) for title, group in rest.items() if group]
    text = "\n\n".join(rows.attrs.get("notes", []))
    return [*content, Part("Runs", [others.runs(rows)], text=text)]


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
        "log's Mamba4Rec has one layer, and a line of its group); nothing is filled in."
    )


def build(folder: Path, rows: pd.DataFrame | None = None, formats: Sequence[str] = ()) -> None:
    """Write ``report.md``, ``figures/*.svg`` and ``tables/*.csv``.

    Args:
        rows: see ``experiments.rows.frame``; those committed by default.
        formats: ``html``, ``latex`` or both, see ``page.write``.

    Raises:
        MixedProtocolError: rows that must not stand in one column; nothing is written then.
    """
    rows = frame() if rows is None else rows
    content = parts(rows, folder / "figures")
    write(folder, TITLE, provenance(rows), content, *formats)


def front_page(folder: Path) -> None:
    """Write the first page of a folder of results: ``README.md`` and ``overall.svg``."""
    rows = frame([folder])
    numbers = []
    text = ["# Results", provenance(rows)]
    text.append(
        "Test and best validation NDCG@10 beside the paper's and its authors' logs. All tables, "
        "figures and runs: `python -m experiments.report`. This page is written by "
        "`python -m experiments.collect`."
    )
    for dataset in (name for name in FRONT if name in set(rows["dataset"])):
        text.append(f"## {dataset}")
        try:
            group = tables.overall(rows, dataset)
        except MixedProtocolError as error:
            text.append(str(error))
            continue
        words = ("experiment=table2_overall", f"dataset={dataset}")
        numbers.append(figures.sources(dataset, lines(rows, model_label, *words)))
        notes = [note for table in group for note in table.notes]
        for table in (table for table in group if table.name.endswith("_ndcg10")):
            filled = table.frame.dropna(axis="columns", how="all")
            text += [markdown(replace(table, frame=filled)), *table.hint, *notes]
    if numbers:
        every = pd.concat(numbers, ignore_index=True)
        ndcg = every[every["metric"] == "NDCG@10"]
        picture = figures.against(ndcg, "dataset", folder / "overall")
        text[3:3] = [f"![{title}]({path.name})" for title, path in picture.items()]
    with atomic_path(folder / "README.md") as partial:
        partial.write_text("\n\n".join(text) + "\n", encoding="utf-8")
