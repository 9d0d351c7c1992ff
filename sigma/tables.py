"""Tables of any size in and out: a file of histories, and a file of recommendations."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sigma.datamodules.database import identifier
from sigma.datamodules.readers.roles import USUAL, role_columns
from sigma.datamodules.readers.values import missing
from sigma.errors import UserError, excerpt
from sigma.files import atomic_path
from sigma.histories import Histories, known_items
from sigma.spreadsheet import marked, write_cells

READERS = {
    ".parquet": "read_parquet(?)",
    ".pq": "read_parquet(?)",
    ".csv": "read_csv(?, all_varchar=true)",
    ".tsv": "read_csv(?, all_varchar=true, delim='\t')",
    ".json": "read_json(?, format='newline_delimited')",
    ".jsonl": "read_json(?, format='newline_delimited')",
}
ROLES = {**USUAL, "item": f"{USUAL['item']} items history itemids"}
MEMORY = "128MB"  # of the sort; what does not fit is sorted on the disk
LINES = 100_000  # read at a time


class HistoryFile:
    """A file of histories, ordered by time out of core and read some users at a time.

    It is Parquet, CSV, TSV or JSON lines (these three also as .gz) with columns of the user, the
    item and, perhaps, the time; a line is an interaction, or a user with a list of items. Without
    times, lines are in order.

    Raises:
        UserError: nothing there, another format, or no such columns.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        if not self.path.exists():
            raise UserError(f"histories={excerpt(path, 200)} does not exist; check the path.")
        ending = Path(self.path.name.lower().removesuffix(".gz")).suffix
        if ending not in READERS:
            raise UserError(
                f"histories={excerpt(path, 200)}: the ending is not one of "
                f"{', '.join(READERS)}; convert the file."
            )
        self.source = READERS[ending]
        self.database = duckdb.connect(config={"memory_limit": MEMORY})
        schema = self.values("DESCRIBE FROM {source}")
        kinds = {name: str(kind) for name, kind, *_ in schema}
        names = role_columns(kinds, ROLES, ("user", "item"), self.path)
        columns = {role: identifier(name) for role, name in names.items()}
        self.lists = kinds[names["item"]].endswith("[]")
        self.timed = "timestamp" in columns and not self.lists
        time = columns["timestamp"] if self.timed else "0"
        if self.timed and kinds[names["timestamp"]].startswith(("VARCHAR", "DATE", "TIME")):
            time = f"coalesce(try_cast({time} AS BIGINT), epoch(try_cast({time} AS TIMESTAMP)))"
        self.lines = (
            f"SELECT {columns['user']}::VARCHAR AS user, "
            f"{columns['item']}::VARCHAR{'[]' * self.lists} AS item, "
            f"{time}::BIGINT AS time, row_number() OVER () AS line FROM {{source}}"
        )
        self.check()
        number = f"SELECT approx_count_distinct(user) FROM ({self.lines})"
        self.users = int(self.values(number)[0][0])  # about as many

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What DuckDB raises in here is one sentence."""
        try:
            yield
        except duckdb.Error as error:
            reason = excerpt(" ".join(str(error).split()), 160)
            raise UserError(f"{self.path} cannot be read ({reason}).") from error

    def query(self, text: str) -> Any:
        """A relation; ``{source}`` stands for the file."""
        return self.database.sql(text.format(source=self.source), params=[str(self.path)])

    def values(self, text: str) -> list[Any]:
        with self.reading():
            return list(self.query(text).fetchall())

    def batches(self, text: str) -> Iterator[pa.RecordBatch]:
        with self.reading():
            yield from self.query(text).to_arrow_reader(LINES)

    def check(self) -> None:
        """See that nothing is missing.

        Raises:
            UserError: a user, an item or a time is; it says where.
        """
        for role in ("user", "item", "time"):
            absent = f"{role} IS NULL"
            if role != "time" and not (role == "item" and self.lists):
                absent = missing(role, "VARCHAR")
            line = self.values(f"SELECT min(line) FROM ({self.lines}) WHERE {absent}")[0][0]
            if line is not None:
                raise UserError(
                    f"{self.path}: the {role} of line {line:,} is missing or cannot be read; mend "
                    "or drop it."
                )

    def parts(self, catalogue: pd.Index) -> Iterator[Histories]:
        """Some users' histories at a time, in the order of the users' ids as text.

        Of lists they come in the order of the file, a user of several lines as often.

        Args:
            catalogue: raw ids of items 1 … K, as text.

        Raises:
            UserError: the file cannot be read to its end.
        """
        if self.lists:
            for batch in self.batches(f"SELECT user, item FROM ({self.lines})"):
                users, lists = batch.columns
                ends = lists.value_lengths().fill_null(0).to_numpy().cumsum()
                items = lists.flatten()
                yield self.histories(users, items, ends, None, catalogue)
            return
        rest: list[pa.RecordBatch] = []  # of a user who may go on
        order = f"SELECT user, item, time FROM ({self.lines}) ORDER BY user, time, line"
        for batch in chain(self.batches(order), [None]):
            if batch is not None:
                rest.append(batch)
            table = pa.Table.from_batches(rest).combine_chunks() if rest else None
            if table is None or not len(table):
                continue
            runs = pc.run_end_encode(table["user"].chunk(0))
            users, ends = runs.values, runs.run_ends.to_numpy()
            if batch is not None:
                users, ends = users[:-1], ends[:-1]
            if not len(ends):
                continue
            part, rest = table[: ends[-1]], table[ends[-1] :].to_batches()
            times = part["time"].to_numpy() if self.timed else None
            yield self.histories(users, part["item"].combine_chunks(), ends, times, catalogue)

    @staticmethod
    def histories(
        users: pa.Array,
        items: pa.Array,
        ends: np.ndarray,
        times: np.ndarray | None,
        catalogue: pd.Index,
    ) -> Histories:
        """Of users (B,), whose raw items end at ``ends`` (B,)."""
        codes = catalogue.get_indexer(pd.Index(items.to_pandas(), dtype=object)) + 1
        names = users.to_numpy(zero_copy_only=False)
        return known_items(names, codes, np.pad(ends.astype(np.int64), (1, 0)), times)


def write_tables(path: Path, tables: Iterable[pd.DataFrame]) -> tuple[int, int]:
    """Write tables one after the other as CSV or Parquet, whole or not at all.

    Returns:
        Their lines, and the texts that ``sigma.spreadsheet.marked`` changed.

    Raises:
        UserError: another ending, which is seen before the first table is asked for.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"out={excerpt(path, 200)} must end in .csv or .parquet.")
    lines = changed = 0
    with atomic_path(path) as partial, ExitStack() as stack:
        writer: Any = None
        for table in tables:
            lines += len(table)
            if path.suffix == ".csv":
                safe, number = marked(table)
                changed += number
                mode, first = ("a", False) if writer else ("w", True)
                write_cells(safe, partial, mode=mode, header=first)
                writer = True
                continue
            content = pa.Table.from_pandas(table, preserve_index=False)
            writer = writer or stack.enter_context(pq.ParquetWriter(partial, content.schema))
            writer.write_table(content)
        if writer is None:
            raise UserError(f"There is nothing to write to {path}: nobody was asked for.")
        stack.close()  # before the file takes its name
    return lines, changed
