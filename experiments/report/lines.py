"""Lines of tables: the settings of an experiment, and what rows there are of each."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.grid import Job, jobs_of
from experiments.rows import COUNTS, is_protocol, label, setting
from experiments.significance import common, mean_sd
from sigma.runs.identity import protocol_settings


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    label: str  # model, variant or both
    job: Job  # the first of its runs
    seeds: tuple[int, ...]  # those the experiment asks for
    rows: pd.DataFrame  # those there are, of whatever seeds, by seed

    def spread(self, name: str, metric: str) -> dict[str, float]:
        """Mean and standard deviation as cells of the columns ``name`` and ``name sd``."""
        mean, deviation, _ = mean_sd(self.rows, metric)
        return {name: mean, f"{name} sd": deviation}

    def seeds_of(self, metrics: Sequence[str]) -> str:
        """``3 of 5``, or which, where others were run than asked; the fewest of the metrics."""
        n = min((n for m in metrics if (n := mean_sd(self.rows, m)[2])), default=0)
        if n and not set(self.rows["seed"]) <= set(self.seeds):
            return f"{n}: {', '.join(map(str, self.rows['seed']))}"
        return f"{n} of {len(self.seeds)}"


def ratio(ours: Line, theirs: Line, metric: str) -> float:
    """Relative difference of means over common seeds, so that it is not one of seeds."""
    values = common(ours.rows, theirs.rows, metric)
    if not values.any():
        return float("nan")
    first, second = values.mean(axis=0)
    return float(first / second - 1) if second else float("nan")


def model_label(job: Job) -> str:
    """A model, and which variant of it."""
    variant, shortcut = job.override("variant") or "whole", job.override("model.shortcut")
    name = label(job.config) if job.is_composed else job.model
    text = name + f", {variant.replace('_', ' ')}" * (variant != "whole")
    return text + f", shortcut {shortcut}" if shortcut else text


def lines(
    rows: pd.DataFrame, *overrides: str, label: Callable[[Job], str] = model_label
) -> list[Line]:
    """The settings of an experiment in their order, with what there is of each."""
    results = rows[~rows["aside"].astype(bool)].sort_values(["seed", "run_id"])
    present = set(results[["dataset", "model"]].itertuples(index=False, name=None))
    combinations: dict[tuple[str, ...], list[Job]] = defaultdict(list)
    for job in jobs_of(*overrides):
        combinations[job.shared].append(job)
    jobs: dict[str, list[Job]] = defaultdict(list)
    for shared, group in combinations.items():
        # Where there is no row to be of this setting, nothing needs to be composed.
        possible = (group[0].dataset, group[0].model) in present
        jobs[setting(group[0].config) if possible else " ".join(shared)] += group
    return [
        Line(
            label(group[0]),
            group[0],
            tuple(job.seed for job in group),
            results[(results["dataset"] == group[0].dataset) & (results["setting"] == key)],
        )
        for key, group in jobs.items()
    ]


def all_rows(compared: Sequence[Line]) -> pd.DataFrame:
    return pd.concat([line.rows for line in compared])


def marks(compared: Sequence[Line], metric: str) -> list[str]:
    """Best and second best mean; equals share a mark. None where the trained lines are of unequal
    numbers of seeds, or fewer than three.
    """
    spreads = [mean_sd(line.rows, metric) for line in compared]
    means = pd.Series([mean for mean, _, _ in spreads])
    # A counted one's row stands for every seed.
    trained = [len(line.rows) and not line.rows["counted"].iloc[0] for line in compared]
    seeds = {n for (_, _, n), is_trained in zip(spreads, trained, strict=True) if is_trained} - {0}
    return best_marks(means) if len(seeds) < 2 and means.count() > 2 else [""] * len(means)


def best_marks(values: pd.Series) -> list[str]:
    """``best``, ``second`` or nothing for each value; the highest is the best."""
    places = values.rank(ascending=False, method="dense")
    return places.map({1.0: "best", 2.0: "second"}).fillna("").tolist()


def departures(compared: Sequence[Line]) -> dict[str, str]:
    """Where the rows' protocol is not the experiment's: overrides, and its value.

    All rows are of one protocol, see ``check_protocol``; a trained one says all of it.
    """
    present = [line for line in compared if len(line.rows)]
    if not present:
        return {}
    line = max(present, key=lambda line: not line.rows["counted"].iloc[0])
    row = line.rows.iloc[0].to_dict()
    settings = protocol_settings(line.job.config)
    different = {}
    for key in sorted({*row, *settings} - {"model.max_length"}):  # it follows the data's
        value, ours = row.get(key, "null"), settings.get(key)
        if is_protocol(key) and not pd.isna(value) and value != json.dumps(ours):
            different[f"{key}={_override(json.loads(value))}"] = _override(ours)
    return different


def _override(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")).strip('"')


def notes(compared: Sequence[Line]) -> list[str]:
    """Sentences on another protocol than the experiment's, and on another vintage of the data."""
    different = [f"{override} (not {value})" for override, value in departures(compared).items()]
    text = f"Protocol of these runs, where not the experiment's: {', '.join(different)}."
    return [text] * bool(different) + vintage_notes(all_rows(compared))


def vintage_notes(rows: pd.DataFrame) -> list[str]:
    """A sentence on each data set whose counts are not those of the vintage it should be."""
    sentences = {}
    for row in rows[rows["data.matches"].eq(False)].to_dict("records"):
        expected = row["data.expected"]
        differing = ", ".join(
            f"{row[f'data.{side}']:,} {side} instead of {expected[side]:,}"
            for side in COUNTS
            if expected.get(side) not in (None, row[f"data.{side}"])
        )
        sentences[row["dataset"]] = (
            f"{row['dataset']} has {differing}, so it is not the expected vintage "
            f"({expected['vintage']}): compare with others' numbers with care."
        )
    return list(sentences.values())


def missing(
    words: Sequence[str],
    key: str,
    compared: Sequence[Line],
    everyone: Sequence[Line],
    remark: str = "are missing",
) -> list[str]:
    """The commands that add the seeds that are not there, one for all settings that lack the same.

    They ask for the protocol of the rows of ``everyone``; ``words`` select the experiment and the
    data set, ``key`` is the override that tells the lines apart, ``remark`` says what is wrong.
    """
    lacking: dict[tuple[int, ...], list[Line]] = defaultdict(list)
    for line in compared:
        seeds = tuple(seed for seed in line.seeds if seed not in set(line.rows["seed"]))
        if seeds:
            lacking[seeds].append(line)
    total = sum(len(line.seeds) for line in compared)
    commands = []
    for seeds, group in lacking.items():
        only = []
        if len(group) < len(compared):
            only.append(f"{key}={','.join(str(line.job.override(key)) for line in group)}")
        if len(seeds) < len(group[0].seeds):
            only.append(f"seed={','.join(map(str, seeds))}")
        number = f" # {len(seeds) * len(group)} of {total} runs {remark}"
        command = ["python train.py -m", *words, *only, *departures(everyone), number]
        commands.append(" ".join(command))
    return commands
