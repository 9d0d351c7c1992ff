"""What a trained model recommends: ``python -m sigma.recommend run=<folder> users=5050,12 k=10``.

``users`` are asked for what comes after all that the data knows of them, ``histories`` (a file of
new ones: Parquet, CSV, TSV or JSON lines with columns user, item and perhaps timestamp) after what
stands there, ``test`` for what would have come before the target of the run's test, with the
target's rank. ``all`` is everyone.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich.progress import MofNCompleteColumn, Progress

from sigma.errors import UserError, excerpt
from sigma.hindsight import hindsight
from sigma.histories import left_out_sentence
from sigma.recommender import Recommender
from sigma.runs.messages import explained
from sigma.runs.trust import packages
from sigma.spreadsheet import note
from sigma.tables import HistoryFile, write_tables

log = logging.getLogger(__name__)
WIDEST = 80  # characters of an id or a title on the terminal


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m sigma.recommend", description=__doc__, allow_abbrev=False
    )
    add = parser.add_argument
    add("--run", type=Path, required=True, help="the run's folder")
    add("--users", help="raw ids, parted by commas, or all")
    add("--histories", type=Path, help="a file of histories")
    add("--test", help="raw ids of users of the test, parted by commas, or all")
    add("--k", type=int, default=10, help="places")
    add("--unseen", type=str.lower, choices=("true", "false"), help="items alone (not for test)")
    add("--candidates", help="the items to rank, parted by commas")
    add("--path", help="the raw data, where it does not lie any more where it was")
    add("--allow", default="", help="packages of your own, parted by commas")
    add("--device", default="auto", help="cpu or cuda")
    add("--out", type=Path, help="CSV or Parquet to write, instead of printing")
    return parser


def ids(text: str) -> list[str] | None:
    """Raw ids; None for all."""
    return None if text == "all" else text.split(",")


def show(table: pd.DataFrame) -> None:
    """Print a part for each user, or for each target of the test, which a star marks."""
    length = "history_length" if "target" in table else "known"
    for (user, number), part in table.groupby(["user", length], sort=False):
        head = f"User {excerpt(user, WIDEST)}, {number} items"
        titles = part["title"] if "title" in part else pd.Series("", part.index)
        lines = part[["place", "item", "score"]].assign(
            item=[excerpt(item, WIDEST) for item in part["item"]],
            title=[excerpt(title, WIDEST) for title in titles],
        )
        if "target" in table:
            target, rank = part["target"].iloc[0], part["rank"].iloc[0]
            head += f": the next one is {excerpt(target, WIDEST)}, rank {rank:g}"
            lines["title"] += ["*" * (item == target) for item in part["item"]]
        elif not number:
            head += " that the model knows: the most popular"
        if "title" not in part:
            lines = lines.rename(columns={"title": ""})
        print(f"{head}\n{lines.to_string(index=False)}", end="\n\n")


def answers(recommender: Recommender, typed: argparse.Namespace) -> Iterator[pd.DataFrame]:
    """Tables of what comes next, some users at a time; what was left out is said at the end."""
    candidates, unseen = typed.candidates and ids(typed.candidates), typed.unseen != "false"
    if typed.users is not None:
        rows = recommender.known(ids(typed.users))
        parts, number = iter([rows]), len(rows.users)
    else:
        file = HistoryFile(typed.histories)
        parts = file.parts(recommender.items)
        number = file.users
    left_out = popular = 0
    bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), transient=True)
    with bar:
        task = bar.add_task("users", total=number)
        for rows in parts:
            for best in recommender.best(rows, typed.k, unseen, candidates):
                yield recommender.table(rows, best)
                bar.advance(task, len(best.users))
            left_out, popular = left_out + rows.unknown, popular + rows.popular
    if left_out:
        log.warning("%s", left_out_sentence(left_out, popular, number))


def main(arguments: Sequence[str]) -> None:
    # run=a is as good as --run=a
    typed = options().parse_args([a if a.startswith("-") else f"--{a}" for a in arguments])
    asked = [name for name in ("users", "histories", "test") if getattr(typed, name) is not None]
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with explained():
        if len(asked) != 1:
            raise UserError("Give one of users=5050,12, histories=new.csv and test=5050,12.")
        if "all" in (typed.users, typed.test) and typed.out is None:
            raise UserError("Everyone's recommendations go to a file: add out=recommendations.csv.")
        recommender = Recommender.load(typed.run, typed.path, typed.device, packages(typed.allow))
        if typed.test is not None:
            unseen = typed.unseen == "true"
            tables = iter([hindsight(recommender, ids(typed.test), typed.k, unseen)])
        else:
            tables = answers(recommender, typed)
        if typed.out is None:
            for table in tables:
                show(table)
            return
        lines, changed = write_tables(typed.out, tables)
        print(f"{lines:,} recommendations: {typed.out}")
        if changed:
            print(note(changed))


if __name__ == "__main__":
    main(sys.argv[1:])
