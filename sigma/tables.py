"""Tables of any size in and out: a file of histories, and a file of recommendations."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sigma.datamodules.readers.table import USUAL, usual_column
from sigma.errors import UserError, excerpt, listed
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
MEMORY = "1GB"  # what does not fit is sorted on the disk


def quoted(name: str) -> str:
    """A column's name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


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
        schema = self.query("DESCRIBE FROM {source}").fetchall()
        kinds = {name: str(kind) for name, kind, *_ in schema}
        names = {role: usual_column(kinds, usual) for role, usual in ROLES.items()}
        for role in ("user", "item"):
            if names[role] is None:
                raise UserError(
                    f"{path} has no column that looks like the {role}; it has "
                    f"{listed(kinds)}. Name one '{role}'."
                )
        columns = {
            role: '"' + name.replace('"', '""') + '"' for role, name in names.items() if name
        }
        self.lists = kinds[str(names["item"])].endswith("[]")
        self.timed = "timestamp" in columns and not self.lists
        time = columns["timestamp"] if self.timed else "0"
        if self.timed and kinds[str(names["timestamp"])].startswith(("VARCHAR", "DATE", "TIME")):
            time = f"coalesce(try_cast({time} AS BIGINT), epoch(try_cast({time} AS TIMESTAMP)))"
        self.lines = (
            f"SELECT {columns['user']}::VARCHAR AS user, "
            f"{columns['item']}::VARCHAR{'[]' * self.lists} AS item, "
            f"{time}::BIGINT AS time, row_number() OVER () AS line FROM {{source}}"
        )
        self.check()
        self.users = self.query(f"SELECT count(DISTINCT user) FROM ({self.lines})").fetchall()[0][0]

    def query(self, text: str) -> Any:
        """A relation; ``{source}`` stands for the file.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            return self.database.sql(text.format(source=self.source), params=[str(self.path)])
        except duckdb.Error as error:
            reason = excerpt(" ".join(str(error).split()), 160)
            raise UserError(f"{self.path} cannot be read ({reason}).") from error

    def check(self) -> None:
        """See that nothing is missing.

        Raises:
            UserError: a user, an item or a time is; it says where.
        """
        for role in ("user", "item", "time"):
            missing = f"{role} IS NULL OR {role}::VARCHAR = ''"
            query = f"SELECT min(line) FROM ({self.lines}) WHERE {missing}"
            line = self.query(query).fetchall()[0][0]
            if line is not None:
                raise UserError(
                    f"{self.path}: the {role} of interaction {line:,} is missing or cannot be "
                    "read; mend or drop it."
                )

    def parts(self, catalogue: pd.Index, size: int) -> Iterator[Histories]:
        """Histories of ``size`` users at a time, in the order of their first appearance.

        Args:
            catalogue: raw ids of items 1 … K, as text.
        """
        items, times = (f"list({name} ORDER BY time, line)" for name in ("item", "time"))
        if self.lists:
            items, times = "flatten(list(item ORDER BY line))", "[0]"
        query = (
            f"SELECT user, {items} AS items, {times} AS times FROM ({self.lines}) "
            "GROUP BY user ORDER BY min(line)"
        )
        for batch in self.query(query).to_arrow_reader(size):
            users, items, times = batch.columns
            codes = catalogue.get_indexer(pd.Index(items.flatten().to_pandas())) + 1
            moments = times.flatten().to_numpy().astype(np.int64) if self.timed else None
            offsets = items.offsets.to_numpy().astype(np.int64)
            yield known_items(users.to_numpy(zero_copy_only=False), codes, offsets, moments)


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
