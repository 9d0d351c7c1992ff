"""A simulated shop of any size as a file: ``python -m sigma.simulate out=shop.parquet``.

``users=84000000`` makes a billion interactions; what else can be said is listed by ``--help``.
The shop is that of ``sigma.datamodules.simulator``, by the same probabilities, but with purchases
drawn part after part, so that memory does not grow with the users and ten thousand items take no
longer than a hundred. Each row group holds the purchases of some users, ordered by time; another
number of users changes the last part alone. The columns are ``user_id``, ``item_id`` (int32) and
``timestamp`` (int64, seconds). At the end it prints the best hit rate any model can expect.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from sigma.datamodules.simulator import DAY, SUCCESSORS, Shop
from sigma.errors import UserError
from sigma.files import atomic_path
from sigma.runs.messages import explained

PART = 8192  # users drawn together: what belongs to them stays in the processor's cache
GROUP = 2**20  # interactions of a row group, at least
ASKED = 10_000  # users of whom the achievable hit rate is the mean, at most


class Purchases(NamedTuple):
    """Of some users, (n,) each: first everybody's first ones, then the second ones."""

    users: np.ndarray  # int32
    items: np.ndarray  # int32
    days: np.ndarray  # int64


class Sampler:
    """Draws a shop's purchases, at a cost per purchase that no number of items changes."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    @cached_property
    def line(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items in the order of their categories, where their stretches of popularity end on a
        line, and where those of the categories do, from 0: a point of the whole line is an item by
        popularity, a point of a category's stretch one by popularity within it.
        """
        tables = self.shop.catalogue
        order = np.argsort(tables.category, kind="stable")
        ends = np.cumsum(tables.popularity[order])
        sizes = np.bincount(tables.category, minlength=self.shop.num_categories)
        edges = np.concatenate([[0.0], ends[np.cumsum(sizes) - 1]])
        ends[-1] = np.inf  # rounding may end the sums just below 1
        return order.astype(np.int32), ends, edges

    def part(self, number: int) -> Purchases:
        """Those of users ``number * PART`` and the following."""
        shop, first = self.shop, number * PART
        rng = shop.generator(2, number)
        users = min(PART, shop.num_users - first)
        lengths = np.sort(shop.lengths(users, rng))[::-1]
        # So those who buy once more come first; their names do not tell.
        names = (first + rng.permutation(users)).astype(np.int32)
        active = np.searchsorted(-lengths, -np.arange(lengths[0]))  # more than t purchases
        items = self._items(active, rng)
        day = 16_000 + rng.integers(0, 1_000, users)
        days = [day]
        for m in active[1:]:
            gap = rng.geometric(0.1, m) * (rng.random(m) >= shop.same_day)
            days.append(days[-1][:m] + gap)
        return Purchases(
            np.concatenate([names[:m] for m in active]), np.concatenate(items), np.concatenate(days)
        )

    def _items(self, active: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Items of the first ``active[t]`` users at each step t.

        An earlier purchase stands for its category, the last of a category for all of them:
        ``interest`` there is s_c^focus, and 0 at the others. So a step costs as much as a user has
        purchases, however many categories there are.
        """
        shop, (order, ends, edges) = self.shop, self.line
        shape = len(active), active[0]
        interest, category = np.zeros(shape), np.empty(shape, dtype=np.int32)
        everybody, of_item = np.arange(active[0]), shop.catalogue.category.astype(np.int32)
        items: list[np.ndarray] = []
        for t, m in enumerate(active):
            part, point = rng.random((2, m))
            if t:
                # One number tells which part of the mixture, and where in it.
                by_interest = (part - shop.short_term) / max(shop.long_term, 1e-300)
                inside = (by_interest >= 0) & (by_interest < 1)
                sums = np.cumsum(interest[:t, :m], axis=0)
                past = (sums <= by_interest * sums[-1]).sum(axis=0)
                c = category[np.minimum(past, t - 1), everybody[:m]]
                within = edges[c] + point * (edges[c + 1] - edges[c])
                point = np.where(inside, within, point)
            item = order[np.searchsorted(ends, point, side="right")]
            if t:
                follow = np.flatnonzero(part < shop.short_term)
                which = np.searchsorted(np.cumsum(SUCCESSORS[:-1]), point[follow], side="right")
                item[follow] = shop.catalogue.successors[items[-1][follow], which]
            items.append(item)
            # s_c falls with each purchase and grows by one where it is of the category.
            category[t, :m] = of_item[item]
            old = interest[:t, :m]
            old *= shop.decay**shop.focus
            same = category[:t, :m] == category[t, :m]
            before = np.einsum("tm,tm->m", old, same)
            old *= ~same
            interest[t, :m] = (before ** (1 / shop.focus) + 1) ** shop.focus
        return items

    def groups(self) -> Iterator[tuple[Purchases, int]]:
        """All purchases, some users' at a time, by time, and how many users; ties as they were."""
        parts: list[Purchases] = []
        number = -(-self.shop.num_users // PART)
        for place in range(number):
            parts.append(self.part(place))
            if sum(len(part.days) for part in parts) < GROUP and place < number - 1:
                continue
            users, items, days = map(np.concatenate, zip(*parts, strict=True))
            # Sorting numbers is faster than an order that keeps ties.
            keys = days * len(days) + np.arange(len(days))
            keys.sort()
            index = keys % len(days)
            yield Purchases(users[index], items[index], days[index]), len(parts)
            parts.clear()

    def achievable(self, k: int = 10) -> tuple[float, int]:
        """The hit rate at k of the true probabilities for the last purchases of some users, and
        how many users.
        """
        drawn = self.part(0)
        order = np.argsort(drawn.users, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(drawn.users))])
        most = min(ASKED, len(offsets) - 1, max(2**28 // self.shop.num_items, 100))
        last = offsets[1 : most + 1] - 1
        last = last[last > offsets[:most]]  # a first purchase has no history
        if not len(last):
            return math.nan, 0
        return self.shop.hits(drawn.items[order], offsets, last, k), len(last)


def write(shop: Shop, path: Path) -> int:
    """Write a shop's purchases, whole or not at all; how many."""
    schema = pa.schema([("user_id", "int32"), ("item_id", "int32"), ("timestamp", "int64")])
    columns = (*Progress.get_default_columns(), TimeElapsedColumn(), MofNCompleteColumn())
    number = 0
    with (
        atomic_path(path) as partial,
        pq.ParquetWriter(partial, schema) as writer,
        Progress(*columns, transient=True) as bar,
    ):
        task = bar.add_task("users", total=shop.num_users)
        for group, parts in Sampler(shop).groups():
            arrays = [group.users, group.items, group.days * DAY]
            writer.write_table(pa.table(arrays, schema))
            number += len(group.users)
            bar.advance(task, parts * PART)
    return number


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m sigma.simulate", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    for field in fields(Shop):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.removeprefix('num_')}", type=kind, dest=field.name)
    return parser


def main(arguments: Sequence[str]) -> None:
    # users=9 is as good as --users=9
    typed = vars(options().parse_args([a if a.startswith("-") else f"--{a}" for a in arguments]))
    out: Path = typed.pop("out")
    start = time.monotonic()
    with explained():
        try:
            shop = Shop(**{name: value for name, value in typed.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
        if max(shop.num_users, shop.num_items) > 2**31:
            raise UserError("Ids are int32: users and items may be 2,147,483,648 at most.")
        number = write(shop, out)
        seconds = time.monotonic() - start
        rate, users = Sampler(shop).achievable()
        print(f"{number:,} interactions of {shop.num_users:,} users in {seconds:.0f} s: {out}")
        print(f"Achievable HR@10 of a user's last item {rate:.4f}, by {users:,} users")


if __name__ == "__main__":
    main(sys.argv[1:])
