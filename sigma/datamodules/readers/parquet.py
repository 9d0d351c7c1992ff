"""Parquet, of one file or several: DuckDB reads it, and its pages are checked before."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sigma.datamodules.database import Database, literal
from sigma.datamodules.readers.sources import FAULT, LINE, Source
from sigma.errors import UserError, excerpt


def parquet(database: Database, paths: Sequence[Path], path: Path) -> Source:
    """Parquet of one file or several, Hive's folders among them.

    Raises:
        UserError: it is not readable.
    """
    files = ", ".join(literal(str(one)) for one in paths)
    hive = any("=" in part for one in paths for part in one.parts[:-1])
    table = (
        f"read_parquet([{files}], hive_partitioning = {hive}, hive_types_autocast = false, "
        "union_by_name = true)"
    )
    try:
        kinds = {name: str(kind) for name, kind, *_ in database.run(f"DESCRIBE FROM {table}")}
    except Exception as error:
        raise _unreadable(path, error) from error
    query = f"SELECT *, row_number() OVER () AS {LINE}, NULL::VARCHAR AS {FAULT} FROM {table}"
    return Source(path, query, kinds, "row", files=paths)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a readable Parquet file ({excerpt(error)}); write or fetch it again."
    )


def check_pages(paths: Sequence[Path], columns: Sequence[str], rounded: str) -> None:
    """Read these columns' pages against their checksums, where a file has them.

    Args:
        rounded: the column of times that DuckDB takes to be of microseconds.

    Raises:
        UserError: a page is damaged, or the times need nanoseconds.
    """
    for path in paths:
        try:
            # Not buffered ahead: that would be the whole file.
            with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False) as file:
                known = [name for name in columns if name in file.schema_arrow.names]
                for batch in file.iter_batches(1 << 17, columns=known):
                    if rounded in known and "[ns" in str(batch.schema.field(rounded).type):
                        _refuse_nanoseconds(path, rounded, batch.column(rounded))
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _unreadable(path, error) from error


def _refuse_nanoseconds(path: Path, column: str, times: pa.Array) -> None:
    """Times of a type that is read as microseconds, which makes some of them the same."""
    numbers = times.cast(pa.int64())
    if pc.any(pc.not_equal(pc.multiply(pc.divide(numbers, 1000), 1000), numbers)).as_py():
        raise UserError(
            f"{path}: the times in the column '{excerpt(column)}' are of the old type INT96 and "
            "tell nanoseconds; write them as those of a type that Parquet has for them."
        )
