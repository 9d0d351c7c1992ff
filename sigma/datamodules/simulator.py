"""A simulated shop whose best possible hit rate is known, so that "learned" has a meaning.

A user's next item j, given his whole history h, is drawn from

    p(j | h) = short_term * T[last(h), j]                  what follows the last item
             + long_term  * sum_c interest_c(h) * W[c, j]  what the user keeps coming back to
             + the rest   * popularity_j                   what everybody buys

    interest_c(h) = s_c^focus / sum_c' s_c'^focus,
    s_c           = sum over earlier items i of category c of decay^(items since i)

T holds a few successors an item, nearly always of other categories; W is popularity within
category c. Nothing is hidden: p is a function of the history and the shop's fixed tables, so no
ranking can expect more hits than its k most probable items (``Shop.achievable``). How many items
a user buys is drawn apart from which, so "this is the last one" says nothing.

Symbols: U users, I items, C categories, n interactions in all, m positions asked about.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from pydantic.dataclasses import dataclass

from sigma.arguments import Count, Share
from sigma.datamodules.interactions import Interactions
from sigma.datamodules.preprocess import Sequences

SUCCESSORS = (0.5, 0.3, 0.2)
"""Probabilities of an item's successors, by ``transitions``."""

DAY = 86_400
"""Seconds; timestamps are whole days, as Amazon's are."""

Positive = Annotated[float, Field(gt=0)]


class Catalogue(NamedTuple):
    """The fixed tables of a shop."""

    category: np.ndarray  # (I,) int64
    popularity: np.ndarray  # (I,) float64, sums to 1
    share: np.ndarray  # (I,) float64, of the popularity of an item's category: W[category, item]
    successors: np.ndarray  # (I, 3) int64; T has ``SUCCESSORS`` there


@dataclass(frozen=True)
class Shop:
    """Settings of a shop; the same settings always give the same data.

    Raises:
        ValueError: a setting out of range.
    """

    num_users: Count = 2500  # U
    num_items: Count = 500  # I
    num_categories: Annotated[int, Field(ge=2)] = 50  # C
    shortest: Count = 5  # fewest purchases of a user
    longest: Count = 100  # most
    median_extra: Positive = 4.0  # median of the purchases above ``shortest``, log-normal
    spread_extra: Annotated[float, Field(ge=0)] = 1.1  # standard deviation of their logarithm
    skew: float = 0.7  # popularity falls as ``(rank + 5) ** -skew``
    short_term: Share = 0.25  # weight of what follows the last item
    long_term: Share = 0.65  # weight of the user's interests
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9  # of an interest, with each later purchase
    focus: Positive = 2.0  # above 1, larger interests count more than in proportion
    same_day: Annotated[float, Field(ge=0, lt=1)] = 0.4  # probability: on the day of the one before
    seed: Annotated[int, Field(ge=0)] = 0  # of the catalogue and of the purchases, not of training

    def __post_init__(self) -> None:
        for good, demand in (
            (self.num_categories <= self.num_items, "num_categories must not exceed num_items"),
            (self.shortest <= self.longest, "shortest must not exceed longest"),
            (self.short_term + self.long_term < 1, "short_term + long_term must be below 1"),
        ):
            if not good:
                raise ValueError(f"{demand}; got {self}")

    def generator(self, *stream: int) -> np.random.Generator:
        """Independent streams, so that more users do not mean another catalogue."""
        return np.random.default_rng([self.seed, *stream])

    def _bounded(self, number: int) -> Iterator[slice]:
        """Some of ``number`` rows at a time, as many as bound the memory of a row an item."""
        step = max(2**22 // self.num_items, 1)
        return (slice(start, start + step) for start in range(0, number, step))

    @cached_property
    def catalogue(self) -> Catalogue:
        rng = self.generator(0)
        popularity = (np.arange(self.num_items) + 6.0) ** -self.skew
        popularity /= popularity.sum()
        # Dealt out by rank, so that categories are about equally popular, and then shuffled, so
        # that an item's number tells neither its rank nor its category.
        shuffled = rng.permutation(self.num_items)
        popularity = popularity[shuffled]
        category = shuffled % self.num_categories
        total = np.bincount(category, popularity, self.num_categories)
        successors = np.empty((self.num_items, len(SUCCESSORS)), dtype=np.int64)
        for column in successors.T:
            # One circle through all items: every item follows one, and none follows itself.
            circle = rng.permutation(self.num_items)
            column[circle] = np.roll(circle, -1)
        return Catalogue(category, popularity, popularity / total[category], successors)

    def interactions(self) -> Interactions:
        """All purchases in order of their day; one user's keep their order within a day."""
        rng = self.generator(1)
        lengths = self.lengths(self.num_users, rng)
        items = self._purchases(lengths, rng)
        users = np.repeat(np.arange(self.num_users), lengths)
        gaps = rng.geometric(0.1, len(items)) * (rng.random(len(items)) >= self.same_day)
        starts = np.cumsum(lengths) - lengths
        gaps[starts] = 0
        elapsed = np.cumsum(gaps)
        first_day = 16_000 + rng.integers(0, 1_000, self.num_users)
        days = elapsed - elapsed[starts][users] + first_day[users]
        order = np.argsort(days, kind="stable")
        names = np.arange(self.num_items)
        titles = [f"item {item}" for item in names]
        genres = [f"category {category}" for category in self.catalogue.category]
        data = Interactions.of(users[order], items[order], days[order] * DAY)
        data.numbered = True
        data.item_info = pd.DataFrame({"title": titles, "genres": genres}, names.astype(str))
        return data

    def lengths(self, users: int, rng: np.random.Generator) -> np.ndarray:
        """How many purchases (users,) int64 they make."""
        extra = rng.lognormal(np.log(self.median_extra), self.spread_extra, users)
        return np.minimum(self.shortest + extra, self.longest).astype(np.int64)

    def _purchases(self, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Items (n,) int64, user by user: one draw for all users' t-th purchases."""
        starts = np.cumsum(lengths) - lengths
        items = np.empty(lengths.sum(), dtype=np.int64)
        counts = np.zeros((len(lengths), self.num_categories))
        for t in range(lengths.max()):
            active = np.flatnonzero(lengths > t)
            now = starts[active] + t
            first = self.catalogue.popularity[None]
            share = rng.random((len(active), 1))
            for some in self._bounded(len(active)):
                last, place = now[some] - 1, active[some]
                p = self._mixture(items[last], counts[place]) if t else first
                # Rounding may end the sums just below 1, so the last item takes what is left.
                below = np.cumsum(p, axis=1)[:, :-1] <= share[some]
                items[now[some]] = below.sum(axis=1)
            self._remember(counts, active, items[now])
        return items

    def _remember(self, counts: np.ndarray, users: np.ndarray, items: np.ndarray) -> None:
        """Update s (U, C) in place with one more item for each of ``users``."""
        counts[users] *= self.decay
        counts[users, self.catalogue.category[items]] += 1

    def _mixture(self, last: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """p (m, I) from the last items (m,) and s (m, C); the generator and the oracle share it."""
        tables = self.catalogue
        interest = counts**self.focus
        interest /= interest.sum(axis=1, keepdims=True)
        p = interest[:, tables.category] * (self.long_term * tables.share)
        p += (1 - self.short_term - self.long_term) * tables.popularity
        for weight, follows in zip(SUCCESSORS, tables.successors[last].T, strict=True):
            p[np.arange(len(p)), follows] += self.short_term * weight
        return p

    def probabilities(
        self, items: np.ndarray, offsets: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        """True distribution (m, I) of the item at each position, given all before it of its user.

        Args:
            items: (n,) items of this shop, from 0, user by user.
            offsets: (users + 1,) where each user's items start.
            positions: (m,) of ``items``, none of them a user's first.
        """
        starts = offsets[np.searchsorted(offsets, positions, side="right") - 1]
        history = positions - starts
        if len(positions) and history.min() < 1:
            raise ValueError("a position without a history has no last item")
        counts = np.zeros((len(positions), self.num_categories))
        for t in range(history.max(initial=0)):
            active = np.flatnonzero(history > t)
            self._remember(counts, active, items[starts[active] + t])
        return self._mixture(items[positions - 1], counts)

    def achievable(self, data: Sequences, positions: np.ndarray, k: int = 10) -> float:
        """The hit rate at k of the true probabilities, which no model beats but by luck.

        Exact while the filter removed nothing; an item it removed takes its probability with it.

        Args:
            data: made of ``interactions()``; its ``item_ids`` lead back to the shop's.
            positions: (m,) target positions, as in ``Split``.
        """
        ids = data.item_ids.astype(np.int64)
        return self.hits(ids[data.items - 1], data.offsets, positions, k, ids)

    def hits(
        self,
        items: np.ndarray,
        offsets: np.ndarray,
        positions: np.ndarray,
        k: int = 10,
        ids: slice | np.ndarray = slice(None),
    ) -> float:
        """``achievable`` of the shop's own items, of which there are only ``ids``."""
        expected = 0.0
        for some in self._bounded(len(positions)):
            p = self.probabilities(items, offsets, positions[some])[:, ids]
            p /= p.sum(axis=1, keepdims=True)
            most = min(k, p.shape[1])
            expected += float(np.partition(p, -most)[:, -most:].sum())
        return expected / len(positions)
