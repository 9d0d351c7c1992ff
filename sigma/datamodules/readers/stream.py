"""Delimited text and JSON lines, read block by block into codes and times."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.columns import IdColumn, TimeColumn
from sigma.datamodules.readers.lines import Lines, readable

_BLOCK = 1 << 24  # bytes; also the longest JSON line that can be read
_MISSING = ["", "nan", "NaN", "null", "NULL"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns that matter; ``timestamp`` None means the file is in order."""

    user: str
    item: str
    timestamp: str | None


def read_delimited(
    path: Path,
    columns: Columns,
    delimiter: str,
    names: Sequence[str] | None = None,
    item_info: pd.DataFrame | None = None,
    quoted: bool = True,
) -> Interactions:
    """Read CSV-like text.

    Args:
        path: the file, gzipped or not.
        columns: which of the names to read.
        delimiter: between fields; ``::`` for MovieLens ``.dat``.
        names: of all fields in order; None takes them from the first line.
        item_info: see ``Interactions``.
        quoted: whether ``"`` wraps fields.

    Raises:
        UserError: a damaged file, or a line that does not fit, by its number.
    """
    text = Lines(path, delimiter, quoted, header=names is None)
    wanted = [c for c in (columns.user, columns.item, columns.timestamp) if c is not None]
    options: dict[str, Any] = {
        "read_options": pa.csv.ReadOptions(block_size=_BLOCK, column_names=names),
        "parse_options": pa.csv.ParseOptions(
            delimiter=text.delimiter, quote_char='"' if quoted else False
        ),
        "convert_options": pa.csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
            null_values=_MISSING,
        ),
    }
    with readable(path), text.open() as stream:
        try:
            blocks = pa.csv.open_csv(stream, **options)
        except pa.ArrowInvalid as error:
            raise text.diagnose(error, names) from error
        return _gather(blocks, columns, text, item_info, names)


def read_json_lines(
    path: Path, columns: Columns, time_type: pa.DataType, item_info: pd.DataFrame | None = None
) -> Interactions:
    """Read one JSON object a line; other fields than ``columns`` are skipped.

    Raises:
        UserError: a damaged file, or a line that does not fit, by its number.
    """
    text = Lines(path, "", False, header=False)
    assert columns.timestamp is not None
    schema = pa.schema(
        [
            (columns.user, pa.string()),
            (columns.item, pa.string()),
            (columns.timestamp, time_type),
        ]
    )
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    with readable(path), text.open() as stream:
        try:
            blocks = pa.json.open_json(
                stream, pa.json.ReadOptions(block_size=_BLOCK), parse_options=options
            )
            return _gather(blocks, columns, text, item_info, None)
        except pa.ArrowException as error:
            raise text.diagnose_json(error, schema) from error


def _gather(
    blocks: Any,
    columns: Columns,
    text: Lines,
    item_info: pd.DataFrame | None,
    names: Sequence[str] | None,
) -> Interactions:
    users, items = IdColumn(columns.user, text.where), IdColumn(columns.item, text.where)
    times = None if columns.timestamp is None else TimeColumn(columns.timestamp, text.where)
    while True:
        try:
            block = blocks.read_next_batch()
        except StopIteration:
            break
        except pa.ArrowInvalid as error:
            if not text.delimiter:
                raise
            raise text.diagnose(error, names) from error
        users.add(block.column(columns.user))
        items.add(block.column(columns.item))
        if times is not None:
            times.add(block.column(columns.timestamp))
    user_codes, user_ids = users.finish()
    item_codes, item_ids = items.finish()
    stamps = None if times is None else times.finish()
    return Interactions(user_codes, item_codes, stamps, user_ids, item_ids, item_info)
