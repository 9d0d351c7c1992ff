"""Histories as people have them, as the rows that a model reads."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.datamodules.batches import FlatSequences
from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.readers.roles import USUAL, usual_column
from sigma.errors import UserError, excerpt, listed

log = logging.getLogger(__name__)

HistoriesLike = pd.DataFrame | Mapping[Any, Iterable[Any]] | Sequence[Any]


class Histories(NamedTuple):
    """The known items of B users, end to end."""

    users: np.ndarray  # (B,) as they came; of one list 0, of several their place
    items: np.ndarray  # (n,) int32 from 1, a user's oldest first
    offsets: np.ndarray  # (B + 1,) int64; user b has ``items[offsets[b]:offsets[b + 1]]``
    times: np.ndarray | None  # (n,) int64 beside ``items``
    unknown: int = 0  # interactions left out, with items that the model does not know

    @property
    def lengths(self) -> np.ndarray:
        """(B,), of known items."""
        return np.diff(self.offsets)

    @property
    def popular(self) -> int:
        """Users without a known item, who get the most popular ones."""
        return int((self.lengths == 0).sum())

    def part(self, first: int, stop: int) -> "Histories":
        """Users ``first`` … ``stop`` - 1."""
        start, end = self.offsets[first], self.offsets[stop]
        times = None if self.times is None else self.times[start:end]
        offsets = self.offsets[first : stop + 1] - start
        return Histories(self.users[first:stop], self.items[start:end], offsets, times)

    def flat(self, max_length: int, time: str | None) -> tuple[FlatSequences, Tensor]:
        """Those that have an item, each with a place for the item to come; and these places.

        So the data of a test has them. A model that reads the target's time takes that of the last
        item for it.

        Args:
            max_length: the number of last items a row may hold.
            time: see ``sigma.models.base``; None leaves times out.
        """
        lengths = torch.from_numpy(self.lengths[self.lengths > 0])
        row = torch.arange(len(lengths))
        index = torch.arange(len(self.items)) + row.repeat_interleave(lengths)
        ends = lengths.cumsum(0) + row
        items = torch.zeros(len(self.items) + len(lengths), dtype=torch.int32)
        items[index] = torch.from_numpy(self.items)
        flat = FlatSequences(items, F.pad(ends + 1, (1, 0)), max_length)
        if time is not None and self.times is not None:
            flat.times = torch.zeros(len(items), dtype=torch.int64)
            flat.times[index] = torch.from_numpy(self.times)
            flat.times[ends] = flat.times[ends - 1]
            flat.next_times = time == "target"
        return flat, ends


class Best(NamedTuple):
    """The first k items of some users."""

    users: np.ndarray  # (B,) places in the histories
    items: np.ndarray  # (B, k) from 1; 0 where no more are ranked
    scores: np.ndarray  # (B, k)


def as_text(ids: pd.Series, role: str) -> pd.Series:
    """Raw ids as data sets hold them: as text, whole numbers without a point.

    Raises:
        UserError: a value is missing.
    """
    if ids.isna().any():
        line = int(np.flatnonzero(ids.isna())[0]) + 1
        raise UserError(f"The {role} of line {line} of the histories is missing; drop that line.")
    if pd.api.types.is_float_dtype(ids) and (ids == ids.round()).all():
        ids = ids.astype(np.int64)  # pandas' integers beside a missing value
    return ids.astype(str)


def table_of(value: HistoriesLike) -> pd.DataFrame:
    """Columns ``user``, ``item`` and, if there are times, ``timestamp``; a line an interaction.

    Args:
        value: a table with such columns or others of usual names, a mapping of users to their
            items, a list of items, or a list of such lists; the oldest item first.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(value, pd.DataFrame):
        names = [str(name) for name in value.columns]
        roles = {role: usual_column(names, usual) for role, usual in USUAL.items()}
        for role in ("user", "item"):
            if roles[role] is None:
                raise UserError(
                    f"The table of histories has no column of the {role}; it has "
                    f"{listed(names)}. Name one '{role}'."
                )
        columns = {role: value.iloc[:, names.index(n)] for role, n in roles.items() if n}
        return pd.DataFrame(columns).reset_index(drop=True)
    if isinstance(value, str | bytes) or not isinstance(value, Mapping | Sequence | np.ndarray):
        raise UserError(
            "Histories are a table with the columns user and item, a mapping of users to lists of "
            f"items, or a list of items, not {excerpt(repr(value))}."
        )
    if not isinstance(value, Mapping):
        nested = [isinstance(part, list | tuple | np.ndarray) for part in value]
        if any(nested) and not all(nested):
            raise UserError("A list of histories holds lists of items; some of it are none.")
        value = dict(enumerate(value if any(nested) else [value]))
    lists = {user: list(items) for user, items in value.items()}
    lengths = [len(items) for items in lists.values()]
    users = pd.Series(list(lists), dtype=object).repeat(lengths)
    items = pd.Series([item for items in lists.values() for item in items], dtype=object)
    table = pd.DataFrame({"user": users.to_numpy(), "item": items})
    table.attrs["users"] = list(lists)  # those without an item, too
    return table


def histories_of(value: HistoriesLike, catalogue: pd.Index) -> Histories:
    """Histories of known items, users in the order of their first appearance.

    A user's items are ordered by time, equal times as they came; without times as they came.

    Args:
        value: see ``table_of``.
        catalogue: raw ids of items 1 … K, as text.

    Raises:
        UserError: they cannot be read.
    """
    table = table_of(value)
    codes, users = pd.factorize(table["user"])
    if codes.min(initial=0) < 0:
        as_text(table["user"], "user")  # says which is missing
    if (everybody := table.attrs.get("users")) is not None:
        place = {user: code for code, user in enumerate(everybody)}
        codes = np.array([place[user] for user in users], dtype=np.int64)[codes]
        users = everybody
    items = catalogue.get_indexer(pd.Index(as_text(table["item"], "item"))) + 1
    times = whole_times(table["timestamp"]) if "timestamp" in table else None
    order = np.argsort(codes, kind="stable") if times is None else np.lexsort((times, codes))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(users)))])
    names = np.empty(len(users), dtype=object)
    names[:] = list(users)
    return known_items(names, items[order], offsets, None if times is None else times[order])


def lists_of(lists: Sequence[Sequence[str]], catalogue: pd.Index) -> Histories:
    """Histories of lists of raw ids, all of them text, without any check."""
    items = [item for one in lists for item in one]
    codes = catalogue.get_indexer(pd.Index(items, dtype=object)) + 1
    offsets = np.cumsum([0, *map(len, lists)])
    return known_items(np.arange(len(lists)), codes, offsets, None)


def histories_at(data: Sequences, places: np.ndarray, users: np.ndarray) -> Histories:
    """All that data holds of its users at places (B,), who are called ``users``."""
    first, lengths = data.offsets[places], np.diff(data.offsets)[places]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    index = np.repeat(first - offsets[:-1], lengths) + np.arange(offsets[-1])
    times = None if data.timestamps is None else data.timestamps[index]
    return Histories(users, data.items[index], offsets, times)


def known_items(
    users: np.ndarray, items: np.ndarray, offsets: np.ndarray, times: np.ndarray | None
) -> Histories:
    """Histories without the items that the model does not know, 0; other arguments as there."""
    known = items > 0
    before = np.concatenate([[0], np.cumsum(known)])
    if times is not None:
        times = times[known]
    unknown = len(items) - int(before[-1])
    return Histories(users, items[known].astype(np.int32), before[offsets], times, unknown)


def whole_times(column: pd.Series) -> np.ndarray:
    """Times (n,) int64: numbers as they are, dates as seconds since 1970.

    Raises:
        UserError: one of them is neither.
    """
    try:
        if not pd.api.types.is_numeric_dtype(column):
            seconds = pd.to_datetime(column, utc=True).dt.tz_localize(None)
            return seconds.to_numpy("datetime64[s]").astype(np.int64)
        if column.isna().any():
            raise ValueError("one is missing")
        return column.to_numpy(np.int64)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"The timestamps of the histories cannot be read ({excerpt(error, 120)}); give whole "
            "numbers or dates, or leave the column out where lines are in order."
        ) from error


def left_out_sentence(interactions: int, popular: int, users: int) -> str:
    """What is said of interactions that were left out, and of users without a known item."""
    more = f"; {popular:,} without a known one get the most popular" if popular else ""
    return (
        f"{interactions:,} interactions with items that the model does not know are left out of "
        f"{users:,} histories{more}."
    )
