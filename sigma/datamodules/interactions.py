"""Interactions of one data set, in a database that need not fit into memory."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa

from sigma.datamodules.database import Database
from sigma.errors import printable


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
        timed: whether there are times.
        unit: what to divide times by.
        ends: row numbers behind each file's last one, of files that are parts of a split.
        numbered: whether users and items are in order of their ids, not of their appearance.
        item_info: ``title``, ``genres`` by raw item id (as text).
        skipped: lines left out, if any.
    """

    database: Database = field(default_factory=Database)
    timed: bool = False
    unit: int = 1
    ends: tuple[int, ...] = ()
    numbered: bool = False
    item_info: pd.DataFrame | None = None
    skipped: Skipped | None = None
    parts: np.ndarray | None = None  # (n,) int8: 0 training, 1 validation, 2 test; None: not split

    @classmethod
    def of(
        cls, users: np.ndarray, items: np.ndarray, times: np.ndarray | None = None
    ) -> "Interactions":
        """Of arrays (n,) of raw ids and times."""
        data = cls(timed=times is not None)
        moments = np.zeros(len(users), np.int64) if times is None else times
        table = pa.table({"user": users, "item": items, "time": moments})
        data.database.connection.register("arrays", table)
        data.database.run("CREATE TABLE raw AS FROM arrays")
        data.database.connection.unregister("arrays")
        return data

    def __len__(self) -> int:
        return int(self.database.value("SELECT count(*) FROM raw"))

    def frame(self) -> pd.DataFrame:
        """All of it: ``user``, ``item`` and ``time``."""
        return self.database.connection.execute(
            f'SELECT "user", item, time // {self.unit} AS time FROM raw'
        ).df()
