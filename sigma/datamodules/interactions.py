"""Interactions of one data set, in a database that need not fit into memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from sigma.datamodules.database import Database
from sigma.errors import printable

Bounds = tuple[int | None, int | None]
"""``lower <= number < upper``; None is no bound."""
Duplicates = Literal["keep", "identical", "consecutive", "first"]


@dataclass(frozen=True)
class Skipped:
    """Lines of raw files that were left out: malformed, or with something missing."""

    lines: int  # how many
    of: int  # lines the files have
    first: int  # number of the first of them, from 1
    reason: str  # what is wrong with it
    file: str = ""  # its name, where there are several

    def sentence(self, path: object) -> str:
        where = f" of {self.file}" if self.file else ""
        return printable(
            f"{path}: {self.lines:,} of {self.of:,} lines left out, the first of them "
            f"line {self.first}{where}: {self.reason}."
        )


@dataclass
class Interactions:
    """The table ``raw`` of a database, in the order of the files (it decides ties in time).

    Attributes:
        database: ``raw`` has ``user`` and ``item``, raw ids as whole numbers or text, and
            ``time``, whole numbers of any unit (0 where there are none).
        table: the same columns in memory, in place of ``raw``; ids may be encoded, times missing.
        timed: whether there are times.
        unit: what to divide times by.
        ends: row numbers behind each file's last one, of files that are parts of a split.
        numbered: whether users and items are in order of their ids, not of their appearance.
        item_info: ``title``, ``genres`` by raw item id (as text).
        skipped: lines left out, if any.
    """

    database: Database = field(default_factory=Database)
    table: pa.Table | None = None
    timed: bool = False
    unit: int = 1
    ends: tuple[int, ...] = ()
    numbered: bool = False
    item_info: pd.DataFrame | None = None
    skipped: Skipped | None = None

    @classmethod
    def of(
        cls, users: np.ndarray, items: np.ndarray, times: np.ndarray | None = None
    ) -> "Interactions":
        """Of arrays (n,) of raw ids and times."""
        columns = {"user": users, "item": items} | ({} if times is None else {"time": times})
        return cls(table=pa.table(columns), timed=times is not None)

    def __len__(self) -> int:
        if self.table is not None:
            return len(self.table)
        return int(self.database.value("SELECT count(*) FROM raw"))

    def in_memory(self) -> pa.Table:
        """``user``, ``item``, ``time`` and ``line``, the row number by which a file's end is told;
        the latter two where there are any.
        """
        if self.table is not None:
            lines = pa.array(np.arange(len(self)))
            return self.table.append_column("line", lines) if self.ends else self.table
        query = 'SELECT "user", item, time, rowid AS line FROM raw ORDER BY rowid'
        return self.database.connection.sql(query).to_arrow_table()

    def in_database(self) -> None:
        """See that there is ``raw``."""
        if self.table is not None:
            table = self.table
            if not self.timed:
                table = table.append_column("time", pa.array(np.zeros(len(self), np.int64)))
            self.database.connection.register("arrays", table)
            self.database.run("CREATE TABLE raw AS FROM arrays")
            self.database.connection.unregister("arrays")
            self.table = None

    def frame(self) -> pd.DataFrame:
        """All of it: ``user``, ``item`` and ``time``."""
        self.in_database()
        return self.database.connection.execute(
            f'SELECT "user", item, time // {self.unit} AS time FROM raw'
        ).df()


@dataclass(frozen=True)
class Ordered:
    """What is left of them, user by user, oldest first.

    Attributes:
        items: (n,) int32, from 1.
        times: (n,) int64, if there are any.
        parts: (n,) int8: 0 training, 1 validation, 2 test; None of data that is not split.
        counts: (users,) int64 of each user's.
        user_ids, item_ids: raw ids, of users in this order and of items 1, 2, ….
        twins: of ``user`` or ``item``, if some of their ids differ in blanks or in ``.0`` alone:
            two of these and the number of such groups.
    """

    items: np.ndarray
    times: np.ndarray | None
    parts: np.ndarray | None
    counts: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    twins: Mapping[str, tuple[str, str, int]]
