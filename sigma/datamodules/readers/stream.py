"""Delimited text and JSON lines, read block by block into codes and times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.columns import BadRowError, IdColumn, TimeColumn
from sigma.datamodules.readers.lines import Lines, readable
from sigma.datamodules.readers.malformed import LeftOut
from sigma.datamodules.readers.scan import MISSING, delimited_rows, json_rows, scan
from sigma.errors import UserError, excerpt

_BLOCK = 1 << 24  # bytes; no longer line can be read


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
    malformed: str = "error",
    headed: bool = False,
) -> Interactions:
    """Read CSV-like text.

    Args:
        path: the file, gzipped or not.
        columns: which of the names to read.
        delimiter: between fields; ``::`` for MovieLens ``.dat``.
        names: of all fields in order; None takes them from the first line.
        item_info: see ``Interactions``.
        quoted: whether ``"`` wraps fields.
        malformed: ``skip`` leaves malformed lines out, unless they are too many.
        headed: whether the last field of each row stands above it, see ``Lines``.

    Raises:
        UserError: a damaged file, or a line that does not fit, by its number.
    """
    text = Lines(path, delimiter, quoted, headed)
    wanted = [c for c in (columns.user, columns.item, columns.timestamp) if c is not None]
    options: dict[str, Any] = {
        "read_options": pa.csv.ReadOptions(block_size=_BLOCK, column_names=names),
        "convert_options": pa.csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
            null_values=MISSING,
        ),
    }

    def read(carefully: bool = False) -> Interactions:
        # Only then may a line end inside quotes also end a block; it is slower.
        parse = pa.csv.ParseOptions(
            delimiter=text.delimiter,
            quote_char='"' if quoted else False,
            newlines_in_values=carefully and quoted,
        )
        with text.open() as stream:
            blocks = pa.csv.open_csv(stream, parse_options=parse, **options)
            return _gather(blocks, columns, path, item_info)

    def judge(left_out: LeftOut) -> int:
        rows = delimited_rows(text, names, columns.user, columns.item, columns.timestamp)
        return scan(rows, columns.timestamp, left_out)

    return _read(text, read, judge, malformed)


def read_json_lines(
    path: Path,
    columns: Columns,
    time_type: pa.DataType,
    item_info: pd.DataFrame | None = None,
    malformed: str = "error",
) -> Interactions:
    """Read one JSON object a line; other fields than ``columns`` are skipped.

    Raises:
        UserError: a damaged file, or a line that does not fit, by its number.
    """
    text = Lines(path, "", False)
    assert columns.timestamp is not None
    schema = pa.schema(
        [(columns.user, pa.string()), (columns.item, pa.string()), (columns.timestamp, time_type)]
    )
    options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")

    def read(carefully: bool = False) -> Interactions:
        with text.open() as stream:
            blocks = pa.json.open_json(
                stream, pa.json.ReadOptions(block_size=_BLOCK), parse_options=options
            )
            return _gather(blocks, columns, path, item_info)

    def judge(left_out: LeftOut) -> int:
        return scan(json_rows(text, schema), columns.timestamp, left_out)

    return _read(text, read, judge, malformed)


def _read(
    text: Lines,
    read: Callable[[bool], Interactions],
    judge: Callable[[LeftOut], int],
    malformed: str,
) -> Interactions:
    """Read at once; only where that fails, judge line by line, then read without the bad lines.

    A quote out of place need not fail: it takes the lines up to the next quote along. So a file
    with quotes and fewer rows than lines is judged as well.
    """
    with readable(text.path):
        found: Interactions | None = None
        failed: UserError | None = None
        try:
            found = read(False)
            if not text.has_quotes or len(found.users) >= text.ends - 1:  # less the header
                return found
        except (BadRowError, pa.ArrowException, UnicodeDecodeError) as error:
            failed = _explain(text.path, error)
        left_out = LeftOut(text.path, malformed)
        good = judge(left_out)
        text.left_out = left_out.numbers
        mended = bool(text.left_out or text.unquoted)
        if found is not None and not mended and len(found.users) == good:
            return found
        try:
            found = read(True)
        except (BadRowError, pa.ArrowException, UnicodeDecodeError) as error:
            raise failed if failed and not mended else _explain(text.path, error) from error
        if len(found.users) != good:
            raise failed or UserError(
                f"{text.path}: {len(found.users):,} rows can be read of {good:,}, as quotes are "
                "out of place; double those inside quoted fields, or write the file without any."
            )
        return replace(found, skipped=left_out.skipped())


def _explain(path: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    if "Empty CSV" in str(error) or "Empty JSON" in str(error):
        return UserError(f"{path} is empty; fetch it again or point dataset.path at data.")
    return UserError(f"{path} cannot be read ({excerpt(error)}); check the file.")


def _gather(
    blocks: Any, columns: Columns, path: Path, item_info: pd.DataFrame | None
) -> Interactions:
    where = lambda row: str(path)  # noqa: E731 (the line is found where it is told)
    users, items = IdColumn(columns.user, where), IdColumn(columns.item, where)
    times = None if columns.timestamp is None else TimeColumn(columns.timestamp, where)
    for block in blocks:
        users.add(block.column(columns.user))
        items.add(block.column(columns.item))
        if times is not None:
            times.add(block.column(columns.timestamp))
    user_codes, user_ids = users.finish()
    item_codes, item_ids = items.finish()
    stamps = None if times is None else times.finish()
    return Interactions(user_codes, item_codes, stamps, user_ids, item_ids, item_info)
