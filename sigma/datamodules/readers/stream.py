"""Delimited text and JSON lines, read block by block into codes and times."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.columns import IdColumn, TimeColumn
from sigma.errors import UserError

_BLOCK = 1 << 24  # bytes; also the longest JSON line that can be read
_MISSING = ["", "nan", "NaN", "null", "NULL"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns that matter; ``timestamp`` None means the file is in order."""

    user: str
    item: str
    timestamp: str | None


def open_raw(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked if its name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Faults of the file itself become one sentence."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read to its end ({error}); it is damaged or incomplete, so fetch "
            "it again."
        ) from error


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
    text = _Lines(path, delimiter, quoted, header=names is None)
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
    text = _Lines(path, "", False, header=False)
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
    text: "_Lines",
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


class _Lines:
    """The text of a file, and where in it a row stands."""

    def __init__(self, path: Path, delimiter: str, quoted: bool, header: bool) -> None:
        self.path, self.quoted, self.header = path, quoted, header
        self.double = delimiter == "::"  # Arrow splits at single characters only
        self.delimiter = "\t" if self.double else delimiter

    def open(self) -> BinaryIO:
        stream = open_raw(self.path)
        if not self.double:
            return stream
        with stream:  # ratings.dat holds numbers alone (ML-10M, the largest: 250 MB)
            return io.BytesIO(stream.read().replace(b"::", b"\t"))

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """``(line number, fields)`` of every line that is not blank; slow, for messages."""
        with self.open() as stream:
            text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
            if not self.delimiter:
                yield from ((n, [line]) for n, line in enumerate(text, 1) if line.strip())
                return
            rows = (
                csv.reader(text, delimiter=self.delimiter)
                if self.quoted
                else csv.reader(text, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)
            )
            yield from ((rows.line_num, fields) for fields in rows if fields)

    def where(self, row: int) -> str:
        """Place of data row ``row`` (from 0)."""
        row += self.header
        for index, (line, _) in enumerate(self._rows()):
            if index == row:
                return f"{self.path}, line {line}"
        return str(self.path)

    def diagnose(self, error: Exception, names: Sequence[str] | None) -> UserError:
        """The first line that does not fit, for an error that Arrow reports without a line."""
        if "Empty CSV" in str(error):
            return UserError(f"{self.path} is empty; fetch it again or point dataset.path at data.")
        bad = self._not_utf8()
        if bad is not None:
            return bad
        expected = len(names) if names else 0
        for line, fields in self._rows():
            expected = expected or len(fields)
            if len(fields) != expected:
                sign = "::" if self.double else {"\t": "tab"}.get(self.delimiter, self.delimiter)
                return UserError(
                    f"{self.path}, line {line}: expected {expected} fields separated by '{sign}', "
                    f"got {len(fields)}; mend or remove the line."
                )
        return UserError(f"{self.path} cannot be read ({error}); check the file.")

    def diagnose_json(self, error: Exception, schema: pa.Schema) -> UserError:
        """The same for JSON lines."""
        if "Empty JSON" in str(error):
            return UserError(f"{self.path} is empty; fetch it again or point dataset.path at data.")
        bad = self._not_utf8()
        if bad is not None:
            return bad
        for line, (text,) in self._rows():
            try:
                record = json.loads(text)
            except ValueError as reason:
                return UserError(
                    f"{self.path}, line {line}: not a JSON object ({reason}); "
                    "mend or remove the line."
                )
            for field in schema:
                value = record.get(field.name) if isinstance(record, dict) else None
                kind = str if pa.types.is_string(field.type) else int
                if not isinstance(value, kind):
                    return UserError(
                        f"{self.path}, line {line}: the field '{field.name}' should be "
                        f"{'text' if kind is str else 'a whole number'}, got {json.dumps(value)}; "
                        "mend or remove the line."
                    )
        return UserError(f"{self.path} cannot be read ({error}); check the file.")

    def _not_utf8(self) -> UserError | None:
        with self.open() as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return UserError(
                        f"{self.path}, line {number}: the bytes are not UTF-8 text; "
                        "save the file as UTF-8."
                    )
        return None
