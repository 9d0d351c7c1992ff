"""Interactions -> sequences: filtering, order, dense ids (protocol of RecBole 1.2, mended).

Mended: timestamps stay int64 (RecBole sorts them as float32, which merges times 64 s apart, from
2^30 on, January 2004, 128 s; ``float32_times`` does, too).
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from sigma.datamodules.database import Database
from sigma.datamodules.interactions import Interactions, Skipped
from sigma.errors import UserError, excerpt

Bounds = tuple[int | None, int | None]
Duplicates = Literal["keep", "identical", "consecutive", "first"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sequences:
    """All histories in one flat array, so memory grows with interactions alone."""

    items: np.ndarray  # (n,) int32, ids from 1 (0 is padding), user by user, oldest first
    offsets: np.ndarray  # (users + 1,) int64; user u has ``items[offsets[u]:offsets[u + 1]]``
    timestamps: np.ndarray | None  # (n,) int64 beside ``items``
    user_ids: np.ndarray  # raw
    item_ids: np.ndarray  # raw; item j is ``item_ids[j - 1]``
    item_info: pd.DataFrame | None = None  # ``title``, ``genres`` in the order of ``item_ids``
    skipped: Skipped | None = None
    parts: np.ndarray | None = None  # (n,) int8 beside ``items``, of a data set that comes split

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of who had what, in which order; of times only the order."""
        digest = hashlib.blake2b(self.items.data, digest_size=8)
        digest.update(self.offsets.data)
        digest.update(b"" if self.parts is None else self.parts.data)
        return digest.hexdigest()

    @property
    def catalogue(self) -> pd.Index:
        """Raw ids of items 1 … K, as text."""
        return pd.Index([str(raw) for raw in self.item_ids], dtype=object)

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        return len(self.item_ids)


def preprocess(
    data: Interactions,
    user_bounds: Bounds = (None, None),
    item_bounds: Bounds = (None, None),
    duplicates: Duplicates = "keep",
    float32_times: bool | None = None,
) -> Sequences:
    """Filter, order and index one data set; the interactions are used up.

    Order: by user (first appearance in the file), then time, then the order of the file: ties in
    time keep the file's order. Item ids follow the first appearance in that file, too. Of a shop
    both follow its own numbers.

    Users (items) stay that have ``lower <= interactions < upper``; None is no bound.

    ``duplicates`` says what stays of a user's interactions with the same item: all of them
    (``keep``), one at each time (``identical``), one of those that follow each other
    (``consecutive``), or the first in time (``first``).

    ``float32_times`` rounds the times of what is left to those that a float32 holds.

    Of data that comes in parts, a user's items are in order of the parts first.

    Raises:
        ValueError: bounds that exclude everything.
        UserError: nothing left after filtering, or less than all of data that comes in parts.
    """
    for name, (lower, upper) in (("user_bounds", user_bounds), ("item_bounds", item_bounds)):
        if lower is not None and upper is not None and lower >= upper:
            raise ValueError(f"{name}=[{lower}, {upper}) keeps nothing: lower must be below upper")
    database, total = data.database, len(data)
    if total == 0:
        raise UserError("The data set holds no interactions; check the file of dataset.path.")
    bounds = {"user": user_bounds, "item": item_bounds}
    anything: Bounds = (None, None)
    _code(data, bounds if duplicates == "keep" else dict.fromkeys(bounds, anything))
    if duplicates != "keep":
        _drop_duplicates(database, duplicates)
    whole = duplicates == "keep" and database.value("SELECT count(*) FROM coded") == total
    if not whole:
        _filter(database, bounds)
    rows = database.value("SELECT count(*) FROM coded")
    if data.ends and rows < total:
        raise UserError(
            f"The filters would leave out {total - rows:,} of the {total:,} interactions of the "
            "split files, which are taken as they are; set 'dataset.user_bounds=[null,null]', "
            "'dataset.item_bounds=[null,null]' and dataset.duplicates=keep."
        )
    if not rows:
        raise UserError(
            f"No interactions are left after keeping users in {_interval(user_bounds)} and items "
            f"in {_interval(item_bounds)}; lower user_bounds or item_bounds."
        )
    for side in bounds:
        used = f"SELECT id, code, code AS dense, n FROM {side}s"
        if not whole:  # numbers have gaps
            used = (
                "SELECT id, code, (row_number() OVER (ORDER BY code))::INTEGER AS dense, c.n FROM "
                f'{side}s JOIN (SELECT "{side}" AS code, count(*) AS n FROM coded GROUP BY code) c '
                "USING (code)"
            )
        database.run(f"CREATE OR REPLACE TABLE {side}_codes AS {used}")
        _warn_of_twins(database, side)
    ids = {side: database.column(f"SELECT id FROM {side}_codes ORDER BY code") for side in bounds}
    counts = database.column("SELECT n FROM user_codes ORDER BY code").astype(np.int64)
    time = "time::FLOAT::BIGINT" if float32_times else "time"
    items, times, parts = _ordered(data, time, rows, whole)
    info = data.item_info
    if info is not None:
        once = info[~info.index.duplicated()]  # of an item named twice, the first
        info = once.reindex([str(raw) for raw in ids["item"]]).reset_index(drop=True)
    return Sequences(
        items=items,
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        timestamps=times,
        user_ids=ids["user"],
        item_ids=ids["item"],
        item_info=info,
        skipped=data.skipped,
        parts=parts,
    )


def _code(data: Interactions, bounds: Mapping[str, Bounds]) -> None:
    """``raw`` -> ``coded``: numbers by the first appearance in place of ids, of those in bounds."""
    database, order = data.database, "id" if data.numbered else "first"
    for side in bounds:
        database.run(
            f"CREATE OR REPLACE TABLE {side}s AS SELECT id, n, "
            f"(row_number() OVER (ORDER BY {order}))::INTEGER AS code FROM "
            f'(SELECT "{side}" AS id, min(rowid) AS first, count(*) AS n FROM raw GROUP BY id)'
        )
    within = " AND ".join(_within(f"{side}s.n", bounds[side]) for side in bounds)
    database.run(
        f"CREATE OR REPLACE TABLE coded AS SELECT users.code AS user, items.code AS item, "
        f"time // {data.unit} AS time, raw.rowid AS line FROM raw "
        f'JOIN users ON raw."user" = users.id JOIN items ON raw.item = items.id WHERE {within}'
    )
    database.run("DROP TABLE raw")


def _filter(database: Database, bounds: Mapping[str, Bounds]) -> None:
    """Drop users and items out of bounds until nothing changes."""
    while True:
        conditions = []
        for side, (lower, upper) in bounds.items():
            if lower is None and upper is None:
                continue
            database.run(
                f'CREATE OR REPLACE TABLE {side}_out AS SELECT "{side}" AS code FROM coded '
                f"GROUP BY code HAVING NOT ({_within('count(*)', (lower, upper))})"
            )
            if database.value(f"SELECT count(*) FROM {side}_out"):
                conditions.append(f'"{side}" IN (FROM {side}_out)')
        if not conditions:
            return
        database.run(f"DELETE FROM coded WHERE {' OR '.join(conditions)}")


def _drop_duplicates(database: Database, duplicates: Duplicates) -> None:
    if duplicates == "consecutive":
        order = 'PARTITION BY "user" ORDER BY time, line'
        again = f"item = lag(item) OVER ({order})"
    else:
        same = ", time" if duplicates == "identical" else ""
        order = f'PARTITION BY "user", item{same} ORDER BY time, line'
        again = f"row_number() OVER ({order}) > 1"
    database.run(
        f"CREATE OR REPLACE TABLE coded AS FROM coded QUALIFY NOT coalesce({again}, false)"
    )


def _ordered(
    data: Interactions, time: str, rows: int, whole: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Items (from 1), times and parts, user by user, oldest first; on the disk if they are many."""
    database = data.database
    columns: dict[str, type] = {"item": np.int32}
    columns |= {"time": np.int64} if data.timed else {}
    columns |= {"part": np.int8} if data.ends else {}
    arrays = dict(zip(columns, database.arrays(rows, columns.values()), strict=True))
    part = " + ".join(f"(line >= {end})::TINYINT" for end in data.ends[:-1]) or "0"
    dense = "item" if whole else "dense"
    join = "" if whole else "JOIN item_codes AS codes ON coded.item = codes.code"
    query = (
        f"SELECT {dense} AS item, {time if data.timed else 0} AS time, {part} AS part FROM coded "
        f'{join} ORDER BY coded."user", part, 2, line'
    )
    start = 0
    for batch in database.batches(query):
        for name, array in arrays.items():
            array[start : start + len(batch)] = batch.column(name).to_numpy()
        start += len(batch)
    database.run("DROP TABLE coded")
    return arrays["item"], arrays.get("time"), arrays.get("part")


def _within(count: str, bounds: Bounds) -> str:
    lower, upper = bounds
    return f"{count} >= {lower or 0}" + ("" if upper is None else f" AND {count} < {upper}")


def _interval(bounds: Bounds) -> str:
    lower, upper = bounds
    return f"[{0 if lower is None else lower}, {'inf' if upper is None else upper})"


def _warn_of_twins(database: Database, side: str) -> None:
    """Tell of ids that differ in blanks or in ``.0`` alone."""
    kinds = {name: str(kind) for name, kind, *_ in database.run(f"DESCRIBE {side}s")}
    if kinds["id"] != "VARCHAR":
        return
    bare = "regexp_replace(trim(id), '\\.0+$', '')"
    twins = database.run(
        f"SELECT min(id), max(id), count(*) OVER () FROM {side}s WHERE {bare} IN "
        f"(SELECT {bare} FROM {side}s WHERE {bare} <> id) GROUP BY {bare} HAVING count(*) > 1 "
        "LIMIT 1"
    )
    if twins:
        first, second, number = twins[0]
        log.warning(
            "%s of the %ss are written in two ways, such as %r and %r, and count as different "
            "ones; write each in one way if they are the same.",
            *(f"{number:,}", side, excerpt(first), excerpt(second)),
        )
