"""What a run would have recommended before each target of its test, and where the target stood.

Targets are scored in the very batches of the test, so that ranks equal those of the run's
``ranks.parquet`` to the last one (on the machine and device of the run; elsewhere rounding may swap
neighbours).
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sigma.datamodules.base import SequenceDataModule
from sigma.errors import UserError, excerpt, listed
from sigma.ranking.metrics import target_ranks
from sigma.ranking.scores import Seen, all_scores, first_items
from sigma.recommender import Recommender


def hindsight(
    recommender: Recommender, users: Sequence[str] | None = None, k: int = 10, unseen: bool = False
) -> pd.DataFrame:
    """The first ``k`` items for users' next item in the test, of all or of unseen ones.

    Args:
        users: raw ids; None for every user of the test.
        k: places; there are fewer where fewer items are ranked.
        unseen: leave the history out of the ranking, but for a repeated target.

    Returns:
        A line for each place of each test target, users in the order of ``users``: ``user``,
        ``place`` from 1, ``item``, ``score``, ``target``, ``rank`` of the target in this ranking
        (expected over the order of ties), ``history_length``, ``greater`` and ``ties`` (see
        ``sigma.ranking.scores.Ranking``). Ids are raw, as text. Items of equal score stand in the
        order of their first appearance in the data.

    Raises:
        UserError: k below 1, or a user that the test does not ask for.
    """
    if k < 1:
        raise UserError(f"k={k} must be at least 1.")
    sequences = recommender.run.sequences
    indices = user_indices(recommender.data, users)
    parts = list(_score(recommender, indices, k, unseen))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    turn = np.empty(sequences.num_users, dtype=np.int64)
    turn[indices] = np.arange(len(indices))
    order = np.lexsort((columns["history_length"], turn[columns["user"]]))
    top, scores = columns.pop("top")[order], columns.pop("score")[order]
    target, place = np.nonzero(top)
    table = pd.DataFrame(columns).iloc[order[target]].reset_index(drop=True)
    table["place"], table["item"] = place + 1, top[target, place]
    table["score"], table["rank"] = scores[target, place], table["greater"] + 1 + table["ties"] / 2
    table["user"] = [str(sequences.user_ids[user]) for user in table["user"]]
    for name in ("item", "target"):
        table[name] = recommender.items.to_numpy()[table[name] - 1]
    names = ["user", "place", "item", "score", "target", "rank", "history_length"]
    table = table[[*names, "greater", "ties"]]
    if recommender.titles is None:
        return table
    return table.assign(title=recommender.titles[top[target, place] - 1])


def user_indices(data: SequenceDataModule, users: Sequence[str] | None) -> np.ndarray:
    """Indices of users that the test asks for, each once, in the order of ``users`` (raw ids)."""
    ends = np.searchsorted(data.sequences.offsets, data.split.test, side="right")
    tested = {str(data.sequences.user_ids[user]): user for user in np.unique(ends - 1)}
    for user in users or ():
        if str(user) not in tested:
            raise UserError(
                f"There is no user {excerpt(user)} among the {len(tested):,} that the test of "
                f"{data.name} asks for; there are such as "
                f"{listed(list(tested)[:3])}."
            )
    names = tested if users is None else dict.fromkeys(map(str, users))
    return np.array([tested[name] for name in names], dtype=np.int64)


def _score(
    recommender: Recommender, users: np.ndarray, k: int, unseen: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Of test targets of some users: who and what, its rank, the first k and their scores."""
    data, model, device = recommender.data, recommender.model, recommender.fabric.device
    indices = torch.from_numpy(users).to(device)
    for batch in data.test_dataloader():
        batch = data.transfer_batch_to_device(batch, device, 0)
        mask = torch.isin(batch.users, indices)
        if not mask.any():
            continue
        parts = []
        with recommender.precision():
            states = model(batch.items, batch.rows, batch.places)
            seen = Seen(batch) if unseen else None
            for chunk, some in all_scores(model, states):
                if seen is not None:
                    some = some.index_put(seen.of(chunk), some.new_tensor(-math.inf))
                lines = mask[chunk].nonzero().squeeze(1)
                some, targets = some[lines], batch.targets[chunk][lines]
                greater, ties = target_ranks(some, targets)
                top, score = first_items(some, k)
                part: dict[str, Tensor] = {
                    "user": batch.users[chunk][lines],
                    "target": targets,
                    "history_length": batch.history_lengths[chunk][lines],
                    "greater": greater,
                    "ties": ties,
                    "top": top,
                    "score": score,
                }
                parts.append({name: column.cpu().numpy() for name, column in part.items()})
        yield from parts
