"""Settings of an experiment: which runs it asks for, and what rows there are of each."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from experiments.grid import Job, expand
from experiments.ledger import COUNTS, Ledger, Row, is_protocol, setting
from experiments.significance import mean_sd, paired_values
from sigma.runs.identity import identity


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
        seeds: those the experiment asks for.
        rows: those found, of whatever seeds, by seed.
    """

    label: str
    job: Job
    seeds: tuple[int, ...]
    rows: list[Row]

    @property
    def lacking(self) -> tuple[int, ...]:
        """Seeds asked for that have no row."""
        there = {row.seed for row in self.rows}
        return tuple(seed for seed in self.seeds if seed not in there)

    def spread(self, split: str, metric: str) -> tuple[float | None, float | None, int]:
        """Mean, standard deviation and number of seeds."""
        return mean_sd([row.metric(split, metric) for row in self.rows])


def on_common_seeds(
    ours: Line, theirs: Line, split: str, metric: str
) -> tuple[float | None, float | None]:
    """Both means over the seeds that both have, so that a difference is not one of seeds."""
    pairs = paired_values(ours.rows, theirs.rows, split, metric)
    first, second = (mean_sd([pair[at] for pair in pairs])[0] for at in (0, 1))
    return first, second


def lines(ledger: Ledger, label: Callable[[Job], str], *overrides: str) -> list[Line]:
    """The settings of an experiment in their order, with what there is of each."""
    found: dict[str, list[Job]] = defaultdict(list)
    for job in jobs_of(*overrides):
        found[setting(job.config)].append(job)
    return [
        Line(
            label(jobs[0]), jobs[0], tuple(job.seed for job in jobs), ledger.rows_of(jobs[0].config)
        )
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
    line, row = max(rows, key=lambda pair: not pair[1].counted)
    own = identity(line.job.config)
    keys = {key for key in row.protocol.keys() | own.keys() if is_protocol(key)}
    keys = {key for key in keys if row.of_protocol(key) is not ...}
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


def vintage_notes(rows: Sequence[Row]) -> list[str]:
    """A sentence on each data set whose counts are not those of the vintage it should be."""
    told = {}
    for row in rows:
        data = row.content["data"]
        if data.get("matches") is False:
            differing = ", ".join(
                f"{data[side]:,} {side} instead of {wanted:,}"
                for side in COUNTS
                if (wanted := data["expected"].get(side)) not in (None, data[side])
            )
            told[row.dataset] = (
                f"{row.dataset} has {differing}, so it is not the expected vintage "
                f"({data['expected']['vintage']}): compare with others' numbers with care."
            )
    return list(told.values())


def missing(
    experiment: str, dataset: str, found: Sequence[Line], beside: Sequence[Line] = ()
) -> list[str]:
    """The commands that add the seeds that are not there, one for all settings that lack the same.

    They ask for the protocol of the rows there are, ``beside`` included. Rows of other machines do
    not stop them: what is skipped is told by the folder of runs.
    """
    departed = departures([*found, *beside])
    lacking: dict[tuple[int, ...], list[Line]] = defaultdict(list)
    for line in found:
        if line.lacking:
            lacking[line.lacking].append(line)
    asked = sum(len(line.seeds) for line in found)
    overrides = [dict(o.split("=", 1) for o in line.job.overrides) for line in found]
    keys = [k for k in overrides[0] if len({o.get(k) for o in overrides}) > 1 and k != "seed"]
    commands = []
    for seeds, lines_ in lacking.items():
        words = [f"experiment={experiment}", f"dataset={dataset}"]
        if len(lines_) < len(found):
            own = [dict(o.split("=", 1) for o in line.job.overrides) for line in lines_]
            words += [f"{key}={','.join(dict.fromkeys(o[key] for o in own))}" for key in keys]
        if len(seeds) < len(lines_[0].seeds):
            words.append(f"seed={','.join(map(str, seeds))}")
        count = len(seeds) * len(lines_)
        told = f"# {count} of {asked} runs are missing"
        commands.append(" ".join(["python train.py -m", *words, *departed, "", told]))
    return commands
