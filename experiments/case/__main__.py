"""One user's history before and after SIGMA's partial flip, and what trained models recommend.

    python -m experiments.case --runs runs/sigma runs/sasrec --user 5050 --out results/case

Figure 6 of SIGMA's paper (its Table 6 is in the report), for any user of any data set. The runs are
folders that ``train.py`` wrote, all on the same data. The flip shown is that of the first run whose
model has one. Titles and genres are those that came with the data, or of ``--titles``; without any,
ids are shown.

Without ``--user`` the user is chosen by a rule: of the test users whose history is of median length
(the lower one of two), the one of the lowest id.

Into ``--out``: ``case_<user>.png`` and ``.svg``, ``…_history.csv`` and ``…_recommendations.csv``.
"""

import sigma.environment  # noqa: F401  isort: skip

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.case.picture import draw, save
from experiments.case.study import Case, study
from sigma.datamodules.titles import read_titles
from sigma.errors import UserError, excerpt
from sigma.recommend import WIDEST, load
from sigma.runs.messages import explained
from sigma.spreadsheet import note, write_csv


def keep(case: Case, out: Path, last: int = 20) -> tuple[Path, int]:
    """Write picture and tables; the files' path without ending, and the texts changed in them."""
    stem = out / ("case_" + re.sub(r"[^\w.-]+", "_", case.user)[:50])
    out.mkdir(parents=True, exist_ok=True)
    save(draw(case, last), stem, f"Case study: user {excerpt(case.user)} of {case.dataset}")
    tables = {"history": case.history, "recommendations": case.recommendations}
    changed = [write_csv(table, Path(f"{stem}_{name}.csv")) for name, table in tables.items()]
    return stem, sum(changed)


def show(case: Case) -> None:
    """Print all of it but the picture; ``*`` marks the true next item."""
    print(*case.caption, sep="\n")
    title, item = (excerpt(case.target[name] or "", WIDEST) for name in ("title", "item"))
    print(f"The true next item is {title} ({item}).\n")
    lines = case.recommendations
    texts = lines["title"].fillna(lines["item"]).map(lambda text: excerpt(text, WIDEST))
    marks = lines["hit"].map({True: " *", False: ""})
    models = lines["model"] + lines["rank"].map(" (rank {:,g})".format)
    table = lines.assign(text=texts + marks, model=models)
    table = table.pivot(index="place", columns="model", values="text")
    print(table[models.unique()].fillna("").to_string(), "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of runs")
    parser.add_argument("--user", help="raw id")
    kinds = "u.item, movies.dat, movies.csv, a .item file or a table"
    parser.add_argument("--titles", type=Path, help=kinds)
    parser.add_argument("--last", type=int, default=20, help="items of the history to show")
    parser.add_argument("--top", type=int, default=5, help="recommendations of each model")
    parser.add_argument("--path", help="raw data, where it has moved since the runs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with explained():
        if min(options.last, options.top) < 1:
            raise UserError("--last and --top must be at least 1.")
        titles = options.titles and read_titles(options.titles)
        runs = [load(run, options.path) for run in options.runs]
        case = study(runs, options.user, titles, options.top)
        stem, changed = keep(case, options.out, options.last)
        show(case)
        print(f"Picture and tables: {stem}.png, .svg, _history.csv, _recommendations.csv")
        if changed:
            print(note(changed))


if __name__ == "__main__":
    main()
