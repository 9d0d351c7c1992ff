"""The bytes of raw files and the lines they are made of."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sigma.errors import UserError, excerpt

LONGEST = 1 << 23
"""Bytes a line may have: a history of a million items. In Python its fields take 60 times that."""

_SPAN = 100  # lines that a quoted field may go over
_CHUNK = 1 << 20
_RETURN = re.compile(rb"\r(?![\n\0])")  # alone: not in \r\n, nor in that of UTF-16
_HEADING = re.compile(rb"^([^\n,]*):[ \t]*\n", re.MULTILINE)
_LINE_END = re.compile(rb"(?<=[^\n])\n")


def open_raw(path: Path, quoted: bool = False) -> BinaryIO:
    """The bytes of a file of text, unpacked if its name ends in .gz; all its lines end in a line
    feed, where some readers take a carriage return for one, too, and others do not.

    Args:
        quoted: whether ``"`` wraps fields, in which carriage returns stay.

    Raises:
        UserError: while it is read, at a line of more than ``LONGEST`` bytes.
    """
    stream: Any = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115
    chunks = _bounded(_with_line_feeds(stream, quoted), path)
    return io.BufferedReader(_Chunks(stream, chunks), _CHUNK)


def _with_line_feeds(stream: BinaryIO, quoted: bool) -> Iterator[bytes]:
    """A text in chunks, see ``open_raw``."""
    quotes = line_quotes = 0  # so far, and on this line: a quote out of place misleads one count
    while chunk := stream.read(_CHUNK):
        while chunk.endswith(b"\r") and (following := stream.read(1)):
            chunk += following
        parts = _RETURN.split(chunk)
        if quoted:
            for number, part in enumerate(parts):
                if number:
                    wrapped = quotes % 2 or line_quotes % 2
                    parts[number] = part = (b"\r" if wrapped else b"\n") + part
                start = part.rfind(b"\n") + 1
                quotes += part.count(b'"')
                line_quotes = part.count(b'"', start) + (0 if start else line_quotes)
        yield (b"" if quoted else b"\n").join(parts)


def _bounded(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """The same chunks, but for a line without end."""
    place = length = 0  # bytes so far, and those of the line under way
    for chunk in chunks:
        end = chunk.find(b"\n")
        if length + (end if end >= 0 else len(chunk)) > LONGEST:
            raise UserError(
                f"{path}: the line at byte {place - length:,} is longer than {LONGEST:,} bytes, so "
                "this is no text of an interaction or a user a line; check that the file is whole "
                "and that its name says its format."
            )
        place += len(chunk)
        length = len(chunk) - 1 - chunk.rfind(b"\n") + (length if end < 0 else 0)
        yield chunk


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Faults of the file itself become one sentence."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: you have no permission to.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read to its end ({excerpt(error)}); it is damaged or incomplete, so "
            "fetch it again."
        ) from error


class Lines:
    """The text of a file.

    Args:
        path: the file, gzipped or not.
        delimiter: between fields; empty for JSON lines.
        quoted: whether ``"`` wraps fields.
        headed: whether lines such as ``7:`` stand above the rows they belong to (Netflix Prize);
            each row gets it as its last field.

    Attributes:
        left_out: numbers of lines that ``open`` leaves blank, from 1.
        unquoted: numbers of lines whose ``"`` wrap nothing, found by ``rows``; ``open`` drops them.
        ends: line ends that the stream opened last has given.
        has_quotes: whether it has given a ``"``.
    """

    def __init__(self, path: Path, delimiter: str, quoted: bool, headed: bool = False) -> None:
        self.path, self.quoted, self.headed = path, quoted, headed
        self.double = delimiter == "::"  # Arrow splits at single characters only
        self.delimiter = "\t" if self.double else delimiter
        self.left_out: set[int] = set()
        self.unquoted: set[int] = set()
        self.ends, self.has_quotes = 0, False

    def open(self) -> BinaryIO:
        stream = open_raw(self.path, self.quoted)
        if self.headed:
            stream = io.BufferedReader(_Chunks(stream, _with_headings(stream)), _CHUNK)
        if self.double:
            stream = io.BufferedReader(_Chunks(stream, _with_tabs(stream)), _CHUNK)
        if self.left_out or self.unquoted:
            chunks = _mended(stream, self.left_out, self.unquoted)
            stream = io.BufferedReader(_Chunks(stream, chunks), _CHUNK)
        if self.quoted:
            self.ends, self.has_quotes = 0, False
            return io.BufferedReader(_Told(stream, self), _CHUNK)
        return stream

    def rows(self, expected: int | None = None) -> Iterator[tuple[int, int, list[str]]]:
        """``(first line, last line, fields)`` of all that is not blank; slow.

        Bytes that are not UTF-8 become surrogates. A quote that is never closed, or whose row has
        not the ``expected`` number of fields (None: that of the first row), wraps nothing, so that
        it does not take whole lines after it along.
        """
        with self.open() as stream:
            lines = enumerate(stream, start=1)
            ahead: list[tuple[int, str]] = []  # lines read and not used yet, the next one last
            while True:
                if ahead:
                    number, text = ahead.pop()
                else:
                    number, raw = next(lines, (0, b""))
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
                if not number:
                    return
                if not text.strip("\r\n"):
                    continue
                if not self.delimiter:
                    yield number, number, [text]
                    continue
                used, fields = [(number, text)], text.rstrip("\r\n").split(self.delimiter)
                if self.quoted and '"' in text:
                    used, fields = self._quoted(used, ahead, lines, expected)
                elif "\r" in text.rstrip("\r\n"):
                    raise self._torn(number)
                expected = expected or len(fields)
                yield number, used[-1][0], fields

    def _torn(self, number: int) -> UserError:
        return UserError(
            f"{self.path}, line {number}: a quote out of place leaves open which carriage returns "
            "end a line; write line feeds in their place (tr '\\r' '\\n' < old > new) and read the "
            "new file."
        )

    def _quoted(
        self,
        used: list[tuple[int, str]],
        ahead: list[tuple[int, str]],
        lines: Iterator[tuple[int, bytes]],
        expected: int | None,
    ) -> tuple[list[tuple[int, str]], list[str]]:
        """The row that begins with the line ``used``, over more lines where a quote is open."""
        closed = True

        def take() -> Iterator[str]:
            nonlocal closed
            yield used[0][1]
            while len(used) < _SPAN:  # csv comes here only while a quote is open
                if ahead:
                    used.append(ahead.pop())
                else:
                    number, raw = next(lines, (0, b""))
                    if not number:
                        break
                    used.append((number, raw.decode("utf-8", "surrogateescape")))
                yield used[-1][1]
            closed = False

        try:
            fields = next(csv.reader(take(), delimiter=self.delimiter))
            if len(used) > 1:  # text behind the closing quote: it opens a field of its own line
                whole = (line for _, line in used)
                next(csv.reader(whole, delimiter=self.delimiter, strict=True))
        except csv.Error:  # a carriage return inside the line, or a field without end
            closed, fields = False, []
        if closed and (len(used) == 1 or len(fields) == (expected or len(fields))):
            return used, fields
        ahead.extend(reversed(used[1:]))
        number, line = used[0]
        if "\r" in line.rstrip("\r\n"):
            raise self._torn(number)
        fields = line.rstrip("\r\n").split(self.delimiter)
        if len(fields) != (expected or len(fields)):
            return used[:1], []
        self.unquoted.add(number)
        return used[:1], fields


class _Told(io.RawIOBase):
    """A stream that tells ``lines`` how many line ends, and whether quotes, went through it."""

    def __init__(self, stream: BinaryIO, lines: Lines) -> None:
        self._stream, self._lines = stream, lines

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._lines.ends += data.count(b"\n")
        self._lines.has_quotes |= b'"' in data
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Chunks(io.RawIOBase):
    """A stream of what becomes of another."""

    def __init__(self, stream: BinaryIO, chunks: Iterator[bytes]) -> None:
        self._stream, self._chunks = stream, chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def close(self) -> None:
        self._stream.close()
        super().close()


def _with_tabs(stream: BinaryIO) -> Iterator[bytes]:
    """A text with tabs in place of ``::``."""
    while chunk := stream.read(_CHUNK):
        yield (chunk + stream.readline()).replace(b"::", b"\t")


def _mended(stream: BinaryIO, blank: set[int], unquoted: set[int]) -> Iterator[bytes]:
    """A text with lines left blank, and lines without their quotes; all keep their numbers."""
    start = 1
    while lines := stream.readlines(_CHUNK):
        here = set(range(start, start + len(lines)))
        for number in unquoted & here:
            lines[number - start] = lines[number - start].replace(b'"', b"")
        for number in blank & here:
            lines[number - start] = b"\n"
        start += len(lines)
        yield b"".join(lines)


def _with_headings(stream: BinaryIO) -> Iterator[bytes]:
    """A text whose headings are left blank and stand behind the lines below them, see ``Lines``."""
    ending = b",\n"
    while chunk := stream.read(_CHUNK):
        chunk = (chunk + stream.readline()).replace(b"\r\n", b"\n")
        parts = _HEADING.split(chunk if chunk.endswith(b"\n") else chunk + b"\n")
        for at, part in enumerate(parts):
            if at % 2:
                ending = b"," + part + b"\n"
                parts[at] = b"\n"
            elif b"\n\n" in part or part.startswith(b"\n"):
                parts[at] = _LINE_END.sub(ending, part)  # slower; blank lines stay blank
            else:
                parts[at] = part.replace(b"\n", ending)
        yield b"".join(parts)
