"""What a trained model recommends: ``python -m sigma.recommend run=<folder> users=5050,12 k=10``.

``users`` are asked for what comes after all that the data knows of them, ``histories`` (a file of
new ones: Parquet, CSV, TSV or JSON lines with columns user, item and perhaps timestamp) after what
stands there, ``test`` for what would have come before the target of the run's test, with the
target's rank. ``all`` is everyone.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich.progress import track

from sigma.errors import UserError
from sigma.hindsight import hindsight
from sigma.recommender import Recommender
from sigma.runs.messages import explained
from sigma.tables import HistoryFile, Writer


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
    add("--device", default="auto", help="cpu or cuda")
    add("--out", type=Path, help="CSV or Parquet to write, instead of printing")
    return parser


def ids(text: str) -> list[str] | None:
    """Raw ids; None for all."""
    return None if text == "all" else text.split(",")


def show(table: pd.DataFrame) -> None:
    """Print a part for each user and target."""
    tested = "target" in table
    for (user, number), part in table.groupby(
        ["user", "history_length" if tested else "known"], sort=False
    ):
        head = f"User {user}, {number} items"
        if tested:
            target, rank = part["target"].iloc[0], part["rank"].iloc[0]
            head += f": the next one is {target}, rank {rank:g}"
            marks = "*" * (part["item"] == target)
            part = part.assign(title=part["title"] + marks if "title" in part else marks)
        elif not number:
            head += " that the model knows: the most popular"
        names = [name for name in ("place", "item", "score", "title") if name in part]
        print(f"{head}\n{part[names].to_string(index=False)}", end="\n\n")


def tables(recommender: Recommender, typed: argparse.Namespace) -> Iterator[pd.DataFrame]:
    """The answers, some users at a time."""
    unseen, chosen = typed.unseen != "false", typed.candidates and ids(typed.candidates)
    if typed.test is not None:
        yield hindsight(recommender, ids(typed.test), typed.k, typed.unseen == "true")
        return
    if typed.users is not None:
        rows = recommender.known(ids(typed.users))
        parts, number = iter([rows]), len(rows.users)
    else:
        file = HistoryFile(typed.histories)
        parts, number = file.parts(recommender), file.users
    for rows in parts:
        for best in recommender.best(rows, typed.k, unseen, chosen):
            yield recommender.table(rows, best)


def main(arguments: Sequence[str]) -> None:
    # run=a is as good as --run=a
    typed = options().parse_args([a if a.startswith("-") else f"--{a}" for a in arguments])
    with explained():
        ...


if __name__ == "__main__":
    main(sys.argv[1:])
