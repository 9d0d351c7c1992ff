"""One user's history before and after SIGMA's partial flip, and what trained models recommend.

    python -m experiments.case --runs runs/sigma runs/sasrec --user 5050 --out results/case

Figure 6 and Table 6 of SIGMA's paper, for any user of any data set. The runs are folders that
``train.py`` wrote, all on the same data. The flip shown is that of the first run whose model has
one. Titles and genres are those that came with the data, or of ``--titles`` (``u.item``,
``movies.dat``, ``movies.csv``, a ``.item`` file or a table); without any, ids are shown.

Without ``--user`` the user is chosen by a rule: of the test users whose history is of median length
(the lower one of two), the one of the lowest id. ``--pick flip`` instead takes the user for whom
the run with the flip gains most over the best of the others, in 1 / rank of the target, and the
caption says so, with how often it gains and loses among all test users.

Into ``--out``: ``case_<user>.png`` and ``.svg``, ``case_<user>.csv`` (the metrics),
``…_history.csv`` and ``…_recommendations.csv``, ``case_<user>.json`` (what the report says of it),
and all of it as ``case_<user>.md``.
"""

import argparse
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sigma.environment  # noqa: F401  isort: skip

import pandas as pd

from experiments.case.picture import draw
from experiments.case.study import Case, caption, study
from experiments.paper.values import paper
from experiments.rows import METRICS
from sigma.datamodules.titles import Title, read_titles
from sigma.errors import UserError
from sigma.recommend import load
from sigma.runs.files import atomic_path
from sigma.runs.messages import explained


def note() -> str:
    """What the metrics of one user can be, and what the paper's are."""
    numbers = "; ".join(
        f"{row.model} " + " / ".join(f"{v:.4f}" for v in (row[m] for m in METRICS))
        for _, row in paper("table6_case_study").iterrows()
    )
    return (
        "One user has one next item: HR@10 is 0 or 1 (between them only where ties reach over the "
        "10th place), and NDCG and MRR follow from the one rank. So they tell nothing of a model "
        "that the rank does not; compare models by the whole test set. The paper's Table 6 gives "
        f"for user 5050 of ML-1M (HR / NDCG / MRR@10): {numbers}. Those cannot be metrics of one "
        "user's next item, also not as a mean over five seeds; they are of the size of its whole "
        "test set's (Table 2), without being equal to them."
    )


def metrics_table(case: Case) -> pd.DataFrame:
    """A line a model: rank and metrics of this user, metrics of the whole test set."""
    return pd.DataFrame(
        [
            {"model": f.label, "rank": f.rank, **f.metrics()}
            | {f"all users {name}": f.whole.get(name, float("nan")) for name in METRICS}
            for f in case.found
        ]
    )


def history_table(case: Case) -> pd.DataFrame:
    """A line a position of the row, before and after the flip; padding is empty."""
    columns: dict[str, list[Any]] = {"position": list(range(1, len(case.row) + 1))}
    sides: dict[str, Sequence[str | None]] = {"": case.row}
    if case.flipped is not None:
        sides["flipped "] = case.flipped
    for side, items in sides.items():
        known = [None if i is None else case.titles.get(i) for i in items]
        columns[f"{side}item"] = list(items)
        columns[f"{side}title"] = [t and t.title for t in known]
        columns[f"{side}genres"] = [t and "|".join(t.genres) for t in known]
    return pd.DataFrame(columns)


def recommendations_table(case: Case) -> pd.DataFrame:
    """A line a model and place."""
    return pd.DataFrame(
        [
            {
                "model": f.label, "place": place, "item": item, "score": score,
                "title": case.title(item), "hit": item == case.target,
                "genres": "|".join(case.titles.get(item, Title("")).genres),
            }
            for f in case.found
            for place, (item, score) in enumerate(zip(f.items, f.scores, strict=True), start=1)
        ]
    )  # fmt: skip


def report(case: Case, name: str) -> str:
    """All of it as Markdown."""
    target = f"The true next item is {case.title(case.target)} ({case.target})."
    parts = [
        f"# User {case.user} of {case.dataset}",
        f"![history before and after the flip, and recommendations]({name}.png)",
        *caption(case),
    ]
    for title, said, frame in (
        ("Metrics of this one user", note(), metrics_table(case)),
        ("History", target, history_table(case)),
        ("Recommendations", "", recommendations_table(case)),
    ):
        cells = frame.map(lambda v: v.replace("|", r"\|") if isinstance(v, str) else v)
        lines = cells.to_markdown(index=False, floatfmt=".4f", missingval="–")
        parts += [f"### {title}", said, lines]
    return "\n\n".join(filter(None, parts)) + "\n"


def keep(case: Case, out: Path, last: int = 20) -> str:
    """Write picture and tables; returns the files' name without ending."""
    name = "case_" + re.sub(r"[^\w.-]+", "_", case.user)
    draw(case, out, name, last)
    told = {"user": case.user, "dataset": case.dataset, "caption": caption(case), "note": note()}
    for ending, text in (
        (".csv", metrics_table(case).assign(user=case.user).to_csv(index=False)),
        ("_history.csv", history_table(case).to_csv(index=False)),
        ("_recommendations.csv", recommendations_table(case).to_csv(index=False)),
        (".md", report(case, name)),
        (".json", json.dumps(told, indent=1)),
    ):
        with atomic_path(out / f"{name}{ending}") as partial:
            partial.write_text(text, encoding="utf-8")
    return name


class Once(logging.Filter):
    """Lets a message through the first time: each run reads the same data, and warns alike."""

    def __init__(self) -> None:
        super().__init__()
        self.told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        known = len(self.told)
        self.told.add(record.getMessage())
        return len(self.told) > known


def main(arguments: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of runs")
    made.add_argument("--user", help="raw id")
    made.add_argument("--pick", choices=["median", "flip"], default="median", help="without --user")
    made.add_argument("--titles", type=Path, help="file of titles and genres")
    made.add_argument("--last", type=int, default=20, help="items of the history to show")
    made.add_argument("--top", type=int, default=5, help="recommendations of each model")
    made.add_argument("--path", help="raw data, where it has moved since the runs")
    made.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = made.parse_args(arguments)
    handler = logging.StreamHandler()
    handler.addFilter(Once())
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[handler])
    with explained():
        if min(options.last, options.top) < 1:
            raise UserError("--last and --top must be at least 1.")
        titles = None if options.titles is None else read_titles(options.titles)
        runs = [load(run, options.path) for run in options.runs]
        case = study(runs, options.user, options.pick, titles, options.top)
        name = keep(case, options.out, options.last)
        for sentence in caption(case):
            print(sentence)
        print(metrics_table(case).round(4).to_string(index=False))
        print(note())
        print(f"Picture and tables: {options.out / name}.png, .svg, .md, .csv")


if __name__ == "__main__":
    main()
