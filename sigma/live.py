"""One user's history as it happens, by raw ids: ``Recommender.session``."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch

from sigma.errors import UserError
from sigma.histories import Best, lists_of
from sigma.ranking.scores import first_items
from sigma.recommender import Recommender
from sigma.session import Session


class LiveHistory:
    """A history that goes on: each item costs the same, however many came before.

    An item that the model does not know is left out.

    Args:
        recommender: of a causal recurrent model.
        history: raw ids, oldest first.

    Attributes:
        unknown: items left out.

    Raises:
        UserError: the model reads all items again as each one comes.
    """

    def __init__(self, recommender: Recommender, history: Iterable[Any] = ()) -> None:
        self.recommender, self.unknown = recommender, 0
        known = self._indices(history)
        try:
            with recommender.precision():
                self.session = Session(recommender.model, known)
        except ValueError as error:
            raise UserError(f"{error} Ask recommend(history) instead.") from error
        self.seen = torch.zeros_like(recommender.counts, dtype=torch.bool)  # (K,)
        self._mark(known)

    def _indices(self, items: Iterable[Any]) -> list[int]:
        """Of the known ones, from 1."""
        rows = lists_of([[str(item) for item in items]], self.recommender.items)
        self.unknown += rows.unknown
        return rows.items.tolist()

    def __len__(self) -> int:
        """Known items so far."""
        return len(self.session)

    def add(self, *items: Any) -> None:
        """Read on."""
        known = self._indices(items)
        if known:
            with self.recommender.precision():
                self.session.add(*known)
            self._mark(known)

    def _mark(self, known: list[int]) -> None:
        self.seen[torch.tensor(known, dtype=torch.int64) - 1] = True

    def recommend(self, k: int = 10, unseen: bool = True) -> pd.DataFrame:
        """The first ``k`` items that come next; as ``Recommender.recommend`` of one history."""
        if k < 1:
            raise UserError(f"k={k} must be at least 1.")
        recommender, hidden = self.recommender, None
        with recommender.precision():
            scores = (self.session.scores() if len(self) else recommender.counts)[None].float()
            if unseen:
                columns = self.seen.nonzero().squeeze(1)
                hidden = (torch.zeros_like(columns), columns)
            items, values = first_items(scores, k, hidden=hidden)
        best = Best(np.zeros(1, dtype=np.int64), items.cpu().numpy(), values.cpu().numpy())
        table = recommender.table(lists_of([[]], recommender.items), best)
        return table.assign(known=len(self)).drop(columns="user")
