"""Write the README's tables of results anew from the rows: python -m experiments.readme

A table stands between the line ``<!-- name -->`` and the next empty line. Where models have several
seeds, each mean is over the first seeds that all of the table's models have, from 2020 on.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from experiments.cells import minus, number
from experiments.collect import ROWS
from experiments.grid import Job
from experiments.ledger import METRICS, Ledger, read
from experiments.lines import Line, lines, model_label, variant_label
from experiments.render import replace
from sigma.errors import UserError
from sigma.runs.messages import explained

README = Path(__file__).parents[1] / "README.md"
FIRST_SEED = 2020
MODELS = ("beauty", "ml_100k", "ml_latest_small")
SMALL = ("ml_100k", "ml_latest_small")


def three(line: Line, split: str) -> str:
    """HR / NDCG / MRR@10, means over the line's seeds."""
    return " / ".join(number(line.spread(split, metric)[0]) for metric in METRICS)


def first_seeds(line: Line, most: int | None = None) -> Line:
    """The rows of consecutive seeds from 2020 on, at most so many."""
    seeds = {row.seed: row for row in line.rows}
    told = []
    while FIRST_SEED + len(told) in seeds and (most is None or len(told) < most):
        told.append(seeds[FIRST_SEED + len(told)])
    return dataclasses.replace(line, rows=told)


def models_of(ledger: Ledger, dataset: str) -> list[Line]:
    """Every model with rows of the seeds all trained ones have, by test NDCG@10, best first."""
    found: dict[str, Line] = {}
    for experiment in ("table2_overall", "relatives", "yardsticks"):
        words = (f"experiment={experiment}", f"dataset={dataset}")
        for line in lines(ledger, model_label, *words):
            if line.rows:
                found.setdefault(line.label, line)
    trained = [first_seeds(line) for line in found.values() if not line.rows[0].counted]
    seeds = min((len(line.rows) for line in trained), default=1)
    kept = [first_seeds(line, seeds) for line in found.values()]
    return sorted(kept, key=lambda line: -(line.spread("test", "ndcg@10")[0] or 0))


def beauty(ledger: Ledger, old: list[str]) -> list[str]:
    """One run a model; what others published is kept from the old table."""
    published = {cells[0]: cells[3] for cells in (line.strip("| ").split(" | ") for line in old)}
    made = [
        "| model | best validation | test | independent test results | best epoch |",
        "|---" * 5 + "|",
    ]
    for line in models_of(ledger, "beauty"):
        row, name = line.rows[0], f"`{line.label}`"
        best = (
            "counted"
            if row.counted
            else f"{row.content['best_epoch']:.0f} of {row.content['epochs']}"
        )
        cells = (name, three(line, "val"), three(line, "test"), published.get(name, "–"), best)
        made.append(f"| {' | '.join(cells)} |")
    return made


def small(ledger: Ledger, dataset: str) -> list[str]:
    """Means over seeds, and the deviation of the metric that models are ordered by."""
    made = ["| model | best validation | test | sd of test NDCG | seeds |", "|---" * 5 + "|"]
    for line in models_of(ledger, dataset):
        cells = (
            f"`{line.label}`",
            three(line, "val"),
            three(line, "test"),
            number(line.spread("test", "ndcg@10")[1]),
            "counted" if line.rows[0].counted else str(len(line.rows)),
        )
        made.append(f"| {' | '.join(cells)} |")
    return made


def parts(ledger: Ledger) -> list[str]:
    """SIGMA with a part less, more layers and other flips, beside the whole on the same seeds."""
    asked: tuple[tuple[str, Callable[[Job], str]], ...] = (
        ("table4_ablation", variant_label),
        ("table5_layers", lambda job: f"{job.chosen('model.num_layers')} layers"),
        ("figure5_flip_range", lambda job: f"r = {job.chosen('model.r')}"),
    )
    made = ["|  | " + " | ".join(f"{d} test | NDCG to the whole | seeds" for d in SMALL) + " |"]
    made.append("|---" * (1 + 3 * len(SMALL)) + "|")
    cells: dict[str, list[str]] = {}
    for at, dataset in enumerate(SMALL):
        whole: Line | None = None
        for experiment, label in asked:
            for line in lines(ledger, label, f"experiment={experiment}", f"dataset={dataset}"):
                line = first_seeds(line)
                whole = whole or line
                if not line.rows or (line is not whole and line.rows == whole.rows):
                    continue
                own = line.spread("test", "ndcg@10")[0] or 0
                base = first_seeds(whole, len(line.rows)).spread("test", "ndcg@10")[0] or 0
                change = minus(f"{own / base - 1:+.1%} of {number(base)}")
                told = "–" if line is whole else change
                into = cells.setdefault(line.label, ["–"] * 3 * len(SMALL))
                into[3 * at : 3 * at + 3] = [three(line, "test"), told, str(len(line.rows))]
    made += [f"| {name} | {' | '.join(told)} |" for name, told in cells.items()]
    return made


def renewed(text: str, ledger: Ledger) -> str:
    """The README with its tables of results made of these rows.

    Raises:
        UserError: a table's mark is not there.
    """
    for name in (*MODELS, "parts"):
        found = re.search(rf"<!-- {name} -->\n(.*?)\n\n", text, re.DOTALL)
        if found is None:
            raise UserError(f"README.md has no line <!-- {name} -->; its table belongs below it.")
        old = found.group(1).splitlines()[2:]
        if name == "beauty":
            made = beauty(ledger, old)
        else:
            made = parts(ledger) if name == "parts" else small(ledger, name)
        text = text[: found.start(1)] + "\n".join(made) + text[found.end(1) :]
    return text


def main() -> None:
    with explained():
        replace(README, renewed(README.read_text(), read([ROWS])).encode())
        print(f"Tables of results -> {README}")


if __name__ == "__main__":
    main()
