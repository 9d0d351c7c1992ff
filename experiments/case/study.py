"""A case study's content: one user's history before and after the flip, and what models recommend.

``study`` gathers a ``Case`` of trained runs; ``case_picture`` draws it, ``case_study`` writes it.
"""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import sigma.environment  # noqa: F401  isort: skip

import numpy as np
import pandas as pd
import torch

from experiments.rows import METRICS
from sigma.datamodules.titles import Title, titles_of
from sigma.errors import UserError
from sigma.ops.moves import flip_index
from sigma.ops.rows import rows_of
from sigma.ranking.metrics import RankingMetrics
from sigma.recommend import TrainedRun, recommend


class Found(NamedTuple):
    """What one model has for the user; ``whole`` holds the metrics of the whole test set."""

    label: str
    greater: int
    ties: int
    items: list[str]
    scores: list[float]
    whole: dict[str, float]

    @property
    def rank(self) -> float:
        return self.greater + 1 + self.ties / 2

    def metrics(self) -> dict[str, float]:
        """HR, NDCG and MRR@10 of this one target."""
        metric = RankingMetrics(ks=(10,), alone=True)
        one = (torch.tensor([n]) for n in (self.greater, self.ties, 0))
        metric.update(*one)
        return {name: float(value) for name, value in metric.compute().items()}


class Case(NamedTuple):
    """Everything the picture and the tables show; items are raw ids.

    Attributes:
        dataset: name.
        num_items: of the ranking.
        user: raw id.
        why: sentence on how the user was chosen.
        length: of the whole history.
        row: the history as the model with the flip reads it, oldest first.
        order: position of the row, from 0, that each position of the flipped one reads, n and more
            where it reads padding; None without such a model.
        flip: sentence on that flip.
        kept: items at the row's end that stay.
        target: the true next item.
        found: by model.
        titles: of items, as far as known.
    """

    dataset: str
    num_items: int
    user: str
    why: str
    length: int
    row: list[str]
    order: list[int] | None
    flip: str
    kept: int
    target: str
    found: list[Found]
    titles: dict[str, Title]

    @property
    def flipped(self) -> list[str | None] | None:
        """The row as the flipped direction reads it, None for padding."""
        if self.order is None:
            return None
        return [self.row[i] if i < len(self.row) else None for i in self.order]

    def title(self, item: str) -> str:
        return self.titles[item].title if item in self.titles else item

    def genre(self, item: str) -> str | None:
        """The main genre: the first that the data names."""
        return next(iter(self.titles[item].genres), None) if item in self.titles else None


def flip_of(run: TrainedRun, length: int) -> tuple[list[int], int] | None:
    """Where each position of the flipped row reads from (at least ``length`` is padding), and how
    many items at the end stay; None for a model without a flip.
    """
    model, width = run.config.model, run.data.max_length
    until = model.get("flip_until")
    if "flip_until" in model and until is not None:  # as released: whatever the row's length
        head = min(int(until), width)
        index = [*range(head - 1, -1, -1), *range(head, width)][:length]
        return (index, max(length - head, 0)) if head > 1 else None
    if not model.get("partial_flip", "flip_until" in model):
        return None
    keep = int(model.r)
    index = flip_index(rows_of(torch.tensor([length])), length, keep).tolist()
    return index, min(keep, length)


def same_data(runs: Sequence[TrainedRun]) -> None:
    """All runs must hold the same sequences.

    Raises:
        UserError: names the first that does not.
    """
    first = runs[0].sequences
    for run in runs[1:]:
        for name in ("items", "offsets", "user_ids", "item_ids"):
            if not np.array_equal(getattr(first, name), getattr(run.sequences, name)):
                raise UserError(
                    f"{run.folder} was trained on other data than {runs[0].folder}; compare runs "
                    "on one data set with the same filter."
                )


def labels(runs: Sequence[TrainedRun]) -> list[str]:
    """Names of the models; runs of one model carry their seed, else their folder, else a number."""
    names = [str(run.config.model.get("name")) for run in runs]
    marks = (
        [f"seed {run.config.seed}" for run in runs],
        [run.folder.resolve().name for run in runs],
        [str(i) for i in range(1, len(runs) + 1)],
    )
    found = []
    for name, *its in zip(names, *marks, strict=True):
        same = [i for i, other in enumerate(names) if other == name]
        told = (m for m, all_of in zip(its, marks, strict=True)
                if len({all_of[i] for i in same}) == len(same))  # fmt: skip
        found.append(name if len(same) == 1 else f"{name}, {next(told)}")
    return found


def lowest(users: Iterable[str]) -> str:
    """The lowest id, by number where it is one."""
    return min(users, key=lambda u: (not u.isdecimal(), int(u) if u.isdecimal() else 0, u))


def median_user(run: TrainedRun) -> tuple[str, str]:
    """The user of median history length with the lowest id, and the sentence that says so."""
    assert run.data.split is not None
    sequences, last = run.sequences, run.data.split.test
    users = np.searchsorted(sequences.offsets, last, side="right") - 1
    lengths = pd.Series(last - sequences.offsets[users]).groupby(users).max()
    median = int(np.sort(lengths)[(len(lengths) - 1) // 2])
    fits = [str(sequences.user_ids[u]) for u in lengths.index[lengths == median]]
    return lowest(fits), (
        f"Chosen by rule, not by its outcome: of the {len(fits)} test users with a history of "
        f"median length ({median}), the one of the lowest id."
    )


def flip_user(runs: Sequence[TrainedRun], flips: TrainedRun) -> tuple[str, str]:
    """The user for whom ``flips`` gains most over the others, and the sentence that says so.

    Raises:
        UserError: there is no other run.
    """
    if len(runs) < 2:
        raise UserError("--pick flip compares a run with others; name more than one with --runs.")
    mine: pd.Series = pd.Series(dtype=float)
    others = []
    for run in runs:
        ranks = recommend(run, k=1).groupby("user")["rank"].last()
        if run is flips:
            mine = 1 / ranks
        else:
            others.append(1 / ranks)
    best = pd.concat(others, axis=1).max(axis=1)
    gain = mine - best[mine.index]
    user = lowest(gain.index[gain == gain.max()])
    name = flips.config.model.get("name")
    return user, (
        f"Picked for its outcome (--pick flip), not typical: of all {len(gain):,} test users the "
        f"one for whom {name} gains most over the best of the others, {gain.max():+.3f} in 1 / "
        f"rank. Of all of them, {name} is ahead of every other model for {(gain > 0).mean():.1%} "
        f"and behind the best of them for {(gain < 0).mean():.1%}."
    )


def study(
    runs: Sequence[TrainedRun],
    user: str | None = None,
    pick: str = "median",
    titles: dict[str, Title] | None = None,
    top: int = 5,
) -> Case:
    """Gather what the picture and the tables show.

    Args:
        runs: loaded, at least one, all on the same data.
        user: raw id; None chooses one.
        pick: ``median`` or ``flip``, see above.
        titles: of items; None is those that came with the data.
        top: recommendations of each model.

    Raises:
        UserError: other data, no such user, or nothing to pick by.
    """
    same_data(runs)
    flips = next((run for run in runs if flip_of(run, 2)), None)
    why = "Chosen by its id."
    if user is None and pick == "flip":
        if flips is None:
            raise UserError("--pick flip needs a run of a model that flips, such as model=sigma.")
        user, why = flip_user(runs, flips)
    elif user is None:
        user, why = median_user(runs[0])
    found, length, target = [], 0, ""
    for label, run in zip(labels(runs), runs, strict=True):
        part = recommend(run, [user], k=top)
        part = part[part["history_length"] == part["history_length"].max()]  # the last, of several
        first = part.iloc[0]
        if found and (first["history_length"], first["target"]) != (length, target):
            raise UserError(f"{run.folder} tests user {user} on another item; use one split.")
        length, target = int(first["history_length"]), str(first["target"])
        row = run.folder / "row.json"
        told = json.loads(row.read_text())["metrics"]["test"] if row.is_file() else {}
        found.append(
            Found(
                label, int(first["greater"]), int(first["ties"]), part["item"].tolist(),
                part["score"].tolist(), {name: told[name] for name in METRICS if name in told},
            )
        )  # fmt: skip
    reader = flips or runs[0]
    sequences = reader.sequences
    index = [str(raw) for raw in sequences.user_ids].index(user)
    start = sequences.offsets[index]
    history = sequences.items[start : start + length][-reader.data.max_length :]
    row_items = [str(sequences.item_ids[i - 1]) for i in history]
    order, kept, sentence = None, 0, "None of the models flips the row."
    if flips is not None:
        found_flip = flip_of(flips, len(row_items))
        assert found_flip is not None
        order, kept = found_flip
        name, n = flips.config.model.get("name"), len(row_items)
        if flips.config.model.get("flip_until") is not None:
            sentence = (
                f"{name} reverses columns 1 to {flips.config.model.flip_until} whatever the row's "
                "length; where padding comes to stand, no item is read."
            )
        else:
            sentence = (
                f"{name} reverses the first {n - kept} of the {n} items it reads; the last "
                f"r = {kept} stay."
            )
    known = titles_of(sequences) if titles is None else titles
    return Case(
        str(reader.data.name), sequences.num_items, user, why, length, row_items, order,
        sentence, kept, target, found, known,
    )  # fmt: skip


def caption(case: Case) -> list[str]:
    """Sentences under the picture."""
    read = "" if len(case.row) == case.length else f", of which the last {len(case.row)} are read"
    said = [
        f"User {case.user} of {case.dataset}, {case.length} items of history{read}. {case.why}",
        f"{case.flip} A dot's colour is the item's first genre.",
        f"Ranks are the true next item's among all {case.num_items:,} items, expected over the "
        "order of ties.",
    ]
    missing = sum(item not in case.titles for item in {*case.row, case.target})
    if missing:
        said.append(f"{missing} items have no known title; their ids are shown.")
    return said
