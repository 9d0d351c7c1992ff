"""A case study's content: one user's history before and after the flip, and what models recommend.

``study`` gathers a ``Case`` of trained runs; ``experiments.case.picture`` draws it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from sigma.datamodules.titles import Title, titles_of
from sigma.errors import UserError, excerpt
from sigma.hindsight import hindsight
from sigma.ops.moves import flip_index
from sigma.ops.rows import rows_of
from sigma.recommender import Recommender
from sigma.trained import TrainedRun

COLUMNS = ["model", "rank", "place", "item", "score", "title", "genres", "hit"]


@dataclass(frozen=True)
class Case:
    """What picture and tables show; items are raw ids, genres of an item parted by ``|``.

    Attributes:
        user: raw id.
        target: the true next item: ``item``, ``title``, ``genres``.
        history: as a model reads it, oldest first: ``position`` from 1, ``item``, ``title``,
            ``genres``; where a model flips it, too, ``flipped item`` and so on: what that direction
            reads at this place, NaN for padding.
        fixed: items at the history's end that the flip leaves in place.
        recommendations: ``model``, ``rank`` (of the target), ``place``, ``item``, ``score``,
            ``title``, ``genres``, ``hit``.
        caption: sentences under the picture.
    """

    dataset: str
    user: str
    target: pd.Series
    history: pd.DataFrame
    fixed: int
    recommendations: pd.DataFrame
    caption: list[str]


def described(items: Sequence[str], titles: Mapping[str, Title]) -> pd.DataFrame:
    """``item``, ``title`` and ``genres``; what is not known is None."""
    known = [titles.get(item) for item in items]
    names = [entry and entry.title for entry in known]
    genres = [entry and "|".join(entry.genres) for entry in known]
    return pd.DataFrame({"item": list(items), "title": names, "genres": genres}, dtype=object)


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
    index = flip_index(rows_of(torch.tensor([length])), length, int(model.r)).tolist()
    return index, min(int(model.r), length)


def check_data(runs: Sequence[TrainedRun]) -> None:
    """Refuse runs that do not hold the same sequences."""
    first = runs[0].sequences
    for run in runs[1:]:
        for name in ("items", "offsets", "user_ids", "item_ids"):
            if not np.array_equal(getattr(first, name), getattr(run.sequences, name)):
                raise UserError(
                    f"{run.folder} was trained on other data than {runs[0].folder}; compare runs "
                    "on one data set with the same filter."
                )


def labels(runs: Sequence[TrainedRun]) -> list[str]:
    """Names of the models; as far as it takes, with the run's seed and a number."""
    names = pd.Series([str(run.config.model.get("name")) for run in runs])
    for mark in (
        [f", seed {run.config.seed}" for run in runs],
        [f", {number}" for number in range(1, len(runs) + 1)],
    ):
        names = names.where(~names.duplicated(keep=False), names + pd.Series(mark))
    return names.tolist()


def median_user(run: TrainedRun) -> tuple[str, str]:
    """The user of median history length with the lowest id, and the sentence that says so."""
    assert run.data.split is not None
    sequences, last = run.sequences, run.data.split.test
    users = np.searchsorted(sequences.offsets, last, side="right") - 1
    lengths = pd.Series(last - sequences.offsets[users]).groupby(users).max()
    median = int(np.sort(lengths)[(len(lengths) - 1) // 2])
    fits = [str(sequences.user_ids[u]) for u in lengths.index[lengths == median]]
    return min(fits, key=lambda user: (len(user), user)), (
        f"Chosen by rule, not by its outcome: of the {len(fits)} test users with a history of "
        f"median length ({median}), the one of the lowest id."
    )


def history_of(
    run: TrainedRun, user: str, length: int, titles: Mapping[str, Title]
) -> pd.DataFrame:
    """A user's history as a model reads it, and beside it as its flipped direction does."""
    sequences = run.sequences
    start = sequences.offsets[[str(raw) for raw in sequences.user_ids].index(user)]
    items = sequences.items[start : start + length][-run.data.max_length :]
    history = described([str(sequences.item_ids[i - 1]) for i in items], titles)
    history.insert(0, "position", range(1, len(history) + 1))
    flip = flip_of(run, len(history))
    if flip is None:
        return history
    flipped = history.reindex(flip[0]).reset_index(drop=True)  # NaN where it reads padding
    return history.join(flipped.add_prefix("flipped "))


def study(
    runs: Sequence[TrainedRun],
    user: str | None = None,
    titles: Mapping[str, Title] | None = None,
    top: int = 5,
) -> Case:
    """Gather what the picture and the tables show.

    Args:
        runs: loaded, at least one, all on the same data.
        user: raw id; None is ``median_user``.
        titles: of items; None is those that came with the data.
        top: recommendations of each model.

    Raises:
        UserError: no such user, or runs on other data or another split.
    """
    check_data(runs)
    reader = next((run for run in runs if flip_of(run, 2)), runs[0])
    user, why = median_user(reader) if user is None else (user, "Chosen by its id.")
    parts = [hindsight(Recommender(run, "cpu"), [user], k=top) for run in runs]
    lines = pd.concat(parts, keys=labels(runs), names=["model"]).reset_index("model")
    is_last = lines["history_length"] == lines["history_length"].max()  # of several targets
    lines = lines[is_last].drop(columns="title", errors="ignore").reset_index(drop=True)
    if lines["target"].nunique() > 1 or lines["model"].nunique() < len(runs):
        raise UserError(
            f"The runs test user {excerpt(user)} on different items; compare runs of one split."
        )
    length, target = int(lines["history_length"].iloc[0]), lines["target"].iloc[0]
    titles = titles_of(reader.sequences) if titles is None else titles
    history = history_of(reader, user, length, titles)
    lines = lines.join(described(lines["item"], titles)[["title", "genres"]])
    lines["hit"] = lines["item"] == target
    read = "" if len(history) == length else f", of which the last {len(history)} are read"
    flip, fixed = flip_of(reader, len(history)), 0
    flipped = "None of the models flips the row."
    if flip is not None:
        fixed = flip[1]
        flipped = f"{reader.config.model.name} reads it flipped, too, but for its last {fixed}."
    caption = [
        f"User {excerpt(user)} of {reader.data.name}, {length} items of history{read}. {why}",
        f"{flipped} A dot's colour is the item's first genre.",
        "Ranks are the true next item's among all "
        f"{reader.sequences.num_items:,} items, expected over the order of ties.",
    ]
    if missing := sum(item not in titles for item in {*history["item"], target}):
        caption.append(f"{missing} items have no known title; their ids are shown.")
    return Case(
        dataset=str(reader.data.name),
        user=user,
        target=described([target], titles).iloc[0],
        history=history,
        fixed=fixed,
        recommendations=lines[COLUMNS],
        caption=caption,
    )
