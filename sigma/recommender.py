"""What a trained model is good for: recommendations, scores and states of any history.

``Recommender.load("outputs/…").recommend(["5050", "12"])``; see docs/recommend.md.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.build import accelerator, set_precision
from sigma.datamodules.batches import Batch
from sigma.datamodules.titles import titles_of
from sigma.errors import UserError, excerpt, listed
from sigma.histories import (
    Best,
    Histories,
    HistoriesLike,
    histories_at,
    histories_of,
    left_out_sentence,
)
from sigma.ops.scores import TiedScores
from sigma.ranking.scores import Seen, all_scores, first_items
from sigma.trained import TrainedRun, load

if TYPE_CHECKING:
    from sigma.live import LiveHistory

log = logging.getLogger(__name__)


class Recommender:
    """A trained run that answers for any history, on the CPU or the device named.

    Raw ids are text, as in the run's data (``5`` is as good as ``"5"``). An item that the model
    does not know is left out of a history, and counted; a history without a known one gets the
    items most popular in training.

    Args:
        run: see ``sigma.trained.load``.
        device: as Lightning names it: ``cpu``, ``cuda``, or ``auto`` for the faster one.
    """

    def __init__(self, run: TrainedRun, device: str = "auto") -> None:
        self.run, self.data, self.model = run, run.data, run.task.model
        precision = run.config.trainer.precision
        self.fabric = L.Fabric(accelerator=accelerator(device), devices=1, precision=precision)
        self.fabric.setup_module(run.task)  # moves it to the device and to its precision
        self.items = run.sequences.catalogue

    @classmethod
    def load(
        cls,
        run: str | Path,
        path: str | None = None,
        device: str = "auto",
        allow: Sequence[str] = (),
    ) -> "Recommender":
        """That of a run's folder; arguments and errors as of ``sigma.trained.load``, and above."""
        return cls(load(Path(run), path, allow), device)

    def recommend(
        self,
        histories: HistoriesLike | None = None,
        k: int = 10,
        *,
        users: Sequence[Any] | None = None,
        unseen: bool = True,
        candidates: Iterable[Any] | None = None,
    ) -> pd.DataFrame:
        """The first ``k`` items that come next.

        Args:
            histories: a table with columns user, item and perhaps timestamp, a mapping of users to
                items, a list of items or of such lists; see ``sigma.histories``.
            k: places; there are fewer where fewer items are ranked.
            users: in place of histories, users of the data with all that it holds of them.
            unseen: leave out what is in the history.
            candidates: rank these items alone.

        Returns:
            A line a place, users in their order: ``user``, ``place`` from 1, ``item``, ``score``,
            ``known`` items of the history (0: the most popular items, and how often they were had),
            and ``title`` where the data has titles. Of equal scores the item that the data names
            first comes first.

        Raises:
            UserError: neither histories nor users, or what they cannot be.
        """
        rows = self.histories(histories, users)
        parts = [self.table(rows, best) for best in self.best(rows, k, unseen, candidates)]
        if rows.unknown:
            log.warning("%s", left_out_sentence(rows.unknown, rows.popular, len(rows.users)))
        return pd.concat(parts, ignore_index=True)

    def histories(
        self, histories: HistoriesLike | None = None, users: Sequence[Any] | None = None
    ) -> Histories:
        """Given histories, or those of the data's users, as rows."""
        if (histories is None) == (users is None):
            raise UserError("Give either histories or users.")
        return self.known(users) if histories is None else histories_of(histories, self.items)

    @cached_property
    def counts(self) -> Tensor:
        """(K,), how often training has each item."""
        return self.data.item_counts().to(self.fabric.device, torch.float32)

    @cached_property
    def user_index(self) -> pd.Index:
        return pd.Index([str(raw) for raw in self.run.sequences.user_ids], dtype=object)

    def known(self, users: Sequence[Any] | None) -> Histories:
        """All that the data holds of its users; of all of them if ``users`` is None."""
        names = self.user_index if users is None else pd.Index([str(user) for user in users])
        places = self.user_index.get_indexer(names)
        if (places < 0).any():
            raise UserError(
                f"There is no user {excerpt(names[places < 0][0])} among the "
                f"{len(self.user_index):,} of {self.data.name}; there are such as "
                f"{listed(self.user_index[:3])}. Give a history instead."
            )
        return histories_at(self.run.sequences, places, names.to_numpy())

    def table(self, rows: Histories, best: Best) -> pd.DataFrame:
        """Some users' lines."""
        user, place = np.nonzero(best.items)
        items = best.items[user, place] - 1
        columns: dict[str, Any] = {
            "user": rows.users[best.users[user]],
            "place": place + 1,
            "item": self.items.to_numpy()[items],
            "score": best.scores[user, place],
            "known": rows.lengths[best.users[user]],
        }
        if self.titles is not None:
            columns["title"] = self.titles[items]
        return pd.DataFrame(columns)

    @cached_property
    def titles(self) -> np.ndarray | None:
        """(K,) text, empty where an item has none; None where no item has one."""
        if not (titles := titles_of(self.run.sequences)):
            return None
        names = [titles[raw].title if raw in titles else "" for raw in self.items]
        return np.array(names, dtype=object)

    def indices(self, items: Iterable[Any]) -> Tensor:
        """Ids from 1 of raw items, each once, in their order.

        Raises:
            UserError: there are none, or the model does not know one of them.
        """
        names = pd.Index([str(item) for item in items], dtype=object).unique()
        places = self.items.get_indexer(names)
        if (places < 0).any() or not len(names):
            name = excerpt(names[places < 0][0]) if len(names) else "of no name"
            raise UserError(f"The model knows no item {name}; it knows {len(self.items):,} others.")
        return torch.from_numpy(places + 1).to(self.fabric.device)

    def best(
        self, rows: Histories, k: int, unseen: bool = True, candidates: Iterable[Any] | None = None
    ) -> Iterator[Best]:
        """The first k items, some users at a time, in their order.

        Raises:
            UserError: k below 1, an unknown candidate, or a model that reads times and has none.
        """
        if k < 1:
            raise UserError(f"k={k} must be at least 1.")
        chosen = None if candidates is None else self.indices(candidates).sort().values
        width = min(k, len(self.items) if chosen is None else len(chosen))
        for places, part in self.parts(rows):
            read = torch.from_numpy(part.lengths > 0).to(self.fabric.device)
            items = torch.zeros((len(places), width), dtype=torch.int64, device=read.device)
            scores = torch.zeros_like(items, dtype=torch.float32)
            if part.popular:
                items[~read], scores[~read] = first_items(self.counts[None], k, chosen)
            read = read.nonzero().squeeze(1)
            with self.precision():
                batch, states = self.states(part, unseen)
                seen = Seen(batch) if unseen else None
                for chunk, some in all_scores(self.model, states):
                    hidden = seen.of(chunk) if seen is not None else None
                    first = first_items(some, k, chosen, hidden)
                    items[read[chunk]], scores[read[chunk]] = first
            yield Best(places, items.cpu().numpy(), scores.cpu().numpy())

    def parts(self, rows: Histories) -> Iterator[tuple[np.ndarray, Histories]]:
        """As many users at a time as a batch of the test has: their places, and their rows."""
        for first in range(0, len(rows.users), self.data.eval_batch_size):
            stop = min(first + self.data.eval_batch_size, len(rows.users))
            yield np.arange(first, stop), rows.part(first, stop)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """That of the run, for what is computed within."""
        before = torch.get_float32_matmul_precision()
        set_precision(self.run.config.matmul_precision)
        try:
            with torch.inference_mode(), self.fabric.autocast():
                yield
        finally:
            set_precision(before)

    def states(self, rows: Histories, evaluates: bool = False) -> tuple[Batch, Tensor]:
        """A batch of the histories that have an item, and the states (M, D) that predict the next.

        A model that reads the target's time takes that of the last item for it.

        Raises:
            UserError: the model reads times, and the histories have none.
        """
        time = self.model.time
        if time is not None and rows.times is None:
            raise UserError(f"{self.model.name} reads times; give histories a timestamp.")
        flat, ends = rows.flat(self.data.max_length, time)
        batch = self.data.objective.evaluation(flat.batch(ends, evaluates), self.data.num_items)
        batch = self.data.transfer_batch_to_device(batch, self.fabric.device, 0)
        return batch, self.model(batch.items, batch.rows, batch.places)

    def score(
        self,
        histories: HistoriesLike | None = None,
        items: Iterable[Any] = (),
        *,
        users: Sequence[Any] | None = None,
    ) -> pd.DataFrame:
        """Scores of these items after each history: a line a user, a column an item.

        A user without a known item has NaN. Other arguments as of ``recommend``.
        """
        rows, chosen = self.histories(histories, users), self.indices(items)
        result = np.full((len(rows.users), len(chosen)), np.nan, dtype=np.float32)
        for places, part in self.parts(rows):
            read = places[part.lengths > 0]
            with self.precision():
                for chunk, some in all_scores(self.model, self.states(part)[1]):
                    result[read[chunk]] = some[:, chosen - 1].cpu().numpy()
        names = pd.Index(self.items[chosen.cpu().numpy() - 1], name="item")
        return pd.DataFrame(result, pd.Index(rows.users, name="user"), names)

    def embed(
        self, histories: HistoriesLike | None = None, *, users: Sequence[Any] | None = None
    ) -> np.ndarray:
        """The states (B, D) whose scores rank the next item; NaN without a known item.

        Raises:
            UserError: a model that counts has no states.
        """
        self.expect_learned("states")
        rows, result = self.histories(histories, users), []
        for places, part in self.parts(rows):
            with self.precision():
                states = self.states(part)[1].float().cpu().numpy()
            result.append(np.full((len(places), states.shape[1]), np.nan, dtype=np.float32))
            result[-1][part.lengths > 0] = states
        return np.concatenate(result)

    def session(self, history: Iterable[Any] = ()) -> "LiveHistory":
        """A history that goes on one item at a time, at a cost that its length does not change.

        Raises:
            UserError: the model reads all items again as each one comes.
        """
        from sigma.live import LiveHistory

        return LiveHistory(self, history)

    def similar_items(self, item: Any, k: int = 10) -> pd.DataFrame:
        """The k items whose vectors have the highest cosine with the item's.

        Returns:
            ``place``, ``item``, ``score`` (the cosine) and, where there are, ``title``.

        Raises:
            UserError: an unknown item, or a model without item vectors.
        """
        self.expect_learned("item vectors")
        with self.precision():
            logits = self.model.logits
            if not isinstance(logits, TiedScores):
                raise UserError(f"{self.model.name} has no item vectors.")
            vectors = F.normalize(logits.weight.float(), dim=-1)
            index = self.indices([item]) - 1
            scores = (vectors[index] @ vectors.T).index_fill_(1, index, -math.inf)
            items, scores = first_items(scores, k)
        best = Best(np.zeros(1, dtype=np.int64), items.cpu().numpy(), scores.cpu().numpy())
        rows = histories_of([item], self.items)
        return self.table(rows, best).drop(columns=["user", "known"])

    def expect_learned(self, what: str) -> None:
        if self.model.counted:
            raise UserError(f"{self.model.name} counts and learns no {what}.")
