"""Settings of an experiment: which runs it asks for, and what rows there are of each."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from experiments.grid import Job, expand
from experiments.ledger import Ledger, Row, is_protocol, mean_sd, setting
from sigma.identity import identity


@cache
def jobs_of(*overrides: str) -> tuple[Job, ...]:
    """``expand``, composed once a process."""
    return tuple(expand(overrides))


@dataclass(frozen=True)
class Line:
    """One line of a table: a setting, the seeds asked of it, and the rows there are.

    Attributes:
        label: model or variant.
        job: the first of its runs.
        asked: number of seeds the experiment asks for.
        rows: those found, by seed.
    """

    label: str
    job: Job
    asked: int
    rows: list[Row]

    def spread(self, split: str, metric: str) -> tuple[float | None, float | None, int]:
        """Mean, standard deviation and number of seeds."""
        return mean_sd([row.metric(split, metric) for row in self.rows])


def lines(ledger: Ledger, label: Callable[[Job], str], *overrides: str) -> list[Line]:
    """The settings of an experiment in their order, with what there is of each."""
    found: dict[str, list[Job]] = defaultdict(list)
    for job in jobs_of(*overrides):
        found[setting(job.config)].append(job)
    return [
        Line(label(jobs[0]), jobs[0], len(jobs), ledger.rows_of(jobs[0].config))
        for jobs in found.values()
    ]


def model_label(job: Job) -> str:
    return job.model


def variant_label(job: Job) -> str:
    return (job.chosen("variant") or "whole").replace("_", " ")


def departures(found: Sequence[Line]) -> dict[str, str]:
    """Where the rows' protocol is not the experiment's own: overrides that make it, and its own.

    All rows are of one protocol, see ``check_protocol``; a trained one tells all of it.
    """
    rows = [(line, row) for line in found for row in line.rows]
    if not rows:
        return {}
    line, row = max(rows, key=lambda pair: bool(pair[1].content["parameters"]))
    own = identity(line.job.config)
    keys = {key for key in row.protocol.keys() | own.keys() if is_protocol(key)}
    if not row.content["parameters"]:  # its protocol has no stopping rule
        keys &= row.protocol.keys()
    keys.discard("model.max_length")  # follows the data's
    return {
        f"{key}={_override(row.protocol.get(key))}": _override(own.get(key))
        for key in sorted(keys)
        if row.protocol.get(key) != own.get(key)
    }


def _override(value: object) -> str:
    return json.dumps(value, separators=(",", ":")).strip('"')


def protocol_note(found: Sequence[Line]) -> list[str]:
    """The sentence on ``departures``, or none."""
    told = [f"{made} (not {own})" for made, own in departures(found).items()]
    return [f"Protocol of these runs, where not the experiment's: {', '.join(told)}."] * bool(told)


def missing(experiment: str, dataset: str, found: Sequence[Line]) -> list[str]:
    """The one command that adds the seeds that are not there, or none."""
    asked = sum(line.asked for line in found)
    there = sum(min(line.asked, len(line.rows)) for line in found)
    if there >= asked:
        return []
    words = [f"experiment={experiment}", f"dataset={dataset}", *departures(found)]
    return [f"python train.py -m {' '.join(words)}  # {asked - there} of {asked} runs are missing"]
