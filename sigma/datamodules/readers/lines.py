"""The bytes of raw files, and where in them something is wrong."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from sigma.errors import UserError


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


class Lines:
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
