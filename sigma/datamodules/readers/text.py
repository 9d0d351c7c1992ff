"""Files of text: their bytes, what is to be known of all of them, and their first lines."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from sigma.errors import UserError, excerpt

LONGEST = 1 << 23
"""Bytes a line may have: a history of a million items."""

PACKED = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd")
PARQUET = (".parquet", ".pq")

_CHUNK = 1 << 20
_HEAD = 1000  # lines looked at closely
_FEW_LINES, _FEW_BYTES, _SHORT = 200_000, 1 << 26, 1 << 14
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_OPEN: dict[str, Any] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Faults of the file itself become one sentence."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: you have no permission to.") from error
    except _DAMAGE as error:
        raise UserError(
            f"{path} cannot be read to its end ({excerpt(error)}); it is damaged or incomplete, so "
            "fetch it again."
        ) from error


def bare_name(path: Path) -> str:
    """The name without the ending of a compression."""
    name = path.name
    while Path(name).suffix.lower() in PACKED:
        name = Path(name).stem
    return name


def matches(name: str, pattern: str) -> bool:
    """``fnmatch``, which takes long to prepare a pattern: most are told by their first letters."""
    start = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    return os.path.normcase(name).startswith(os.path.normcase(start)) and fnmatch(name, pattern)


def is_parquet(path: Path) -> bool:
    """Whether a file is Parquet, by its name."""
    return bare_name(path).lower().endswith(PARQUET)


def compression(path: Path) -> str:
    """``gzip``, ``bz2``, ``xz``, ``zstd`` or ``none``, by the file's first bytes."""
    with readable(path), path.open("rb") as stream:
        first = stream.read(6)
    return next((kind for magic, kind in _MAGIC.items() if first.startswith(magic)), "none")


def open_raw(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked."""
    kind = compression(path)
    if kind == "none" and path.suffix.lower() in (".gz", ".gzip") and path.stat().st_size:
        kind = "gzip"  # damaged from its first byte on, and says so
    if kind == "zstd":
        stream: Any = pa.input_stream(str(path), compression="zstd")
    else:
        stream = _OPEN[kind](path) if kind in _OPEN else path.open("rb")
    return stream


def encoding_of(path: Path, setting: str | None) -> str:
    """The encoding asked for, or that of the byte order mark, or UTF-8.

    Raises:
        UserError: no such encoding.
    """
    if setting is not None:
        try:
            return codecs.lookup(setting).name
        except LookupError as error:
            raise UserError(
                f"dataset.encoding={excerpt(setting)} is none that Python knows; take one such as "
                "utf-8, latin-1, cp1252 or gb18030."
            ) from error
    with readable(path), open_raw(path) as stream:
        mark = stream.read(2)
    return "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"


@dataclass(frozen=True)
class Text:
    """A file of text that DuckDB can read.

    Attributes:
        path: as it came, for messages.
        plain: what is read: the same, or a copy in UTF-8 with line feeds.
        head: its first lines that are not blank, numbered from 1.
        lines: how many it has.
        quotes: whether there is a ``"``.
        size: how many bytes it has, unpacked.
    """

    path: Path
    plain: Path
    head: list[tuple[int, str]]
    lines: int
    quotes: bool
    size: int

    @cached_property
    def small(self) -> bool:
        """Whether each of its lines may be malformed, and DuckDB can tell of all of them."""
        few = self.lines <= _FEW_LINES and self.size <= _FEW_BYTES
        return few and all(len(line) <= _SHORT for _, line in self.numbered())

    @property
    def compression(self) -> str:
        return compression(self.plain)

    def content(self) -> bytes:
        """All of it, unpacked, each line ended by a line feed alone."""
        with readable(self.path), open_raw(self.plain) as stream:
            return stream.read().replace(b"\r\n", b"\n")

    def numbered(self) -> Iterator[tuple[int, str]]:
        """``(number from 1, line)`` of all of it; bytes that are not UTF-8 become ``\\ufffd``."""
        with readable(self.path), open_raw(self.plain) as stream:
            text = io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="\n")
            yield from enumerate(text, start=1)


def read_text(path: Path, folder: Path, encoding: str | None = None) -> Text:
    """Look through a file once.

    Args:
        folder: for a copy, where DuckDB needs one: of another encoding or compression, or with
            line ends of several kinds.

    Raises:
        UserError: a damaged file, an empty one, or a line of more than ``LONGEST`` bytes.
    """
    kind = encoding_of(path, encoding)
    lines = returns = pairs = length = size = 0
    quotes, last = False, b"\n"
    with readable(path), open_raw(path) as stream:
        while chunk := stream.read(_CHUNK):
            while chunk.endswith(b"\r") and (following := stream.read(1)):
                chunk += following
            end = chunk.find(b"\n") if kind != "utf-16" else 0
            if length + (end if end >= 0 else len(chunk)) > LONGEST and b"\r" not in chunk:
                raise UserError(
                    f"{path}: line {lines + 1:,} is longer than {LONGEST:,} bytes, so this is no "
                    "text of an interaction or a user a line; check that the file is whole and "
                    "that its name says its format."
                )
            length = len(chunk) - 1 - chunk.rfind(b"\n") + (length if end < 0 else 0)
            size += len(chunk)
            lines += chunk.count(b"\n")
            if b"\r" in chunk:
                returns += chunk.count(b"\r")
                pairs += chunk.count(b"\r\n")
            quotes = quotes or b'"' in chunk
            last = chunk[-1:]
    uniform = returns == 0 or returns == pairs == lines
    plain = path
    if not uniform or kind != "utf-8" or compression(path) in ("bz2", "xz"):
        plain, lines = _copy(path, folder, kind)
        last = b"\n"
    text = Text(path, plain, [], lines + (last != b"\n"), quotes, size)
    numbered = ((n, line.rstrip("\r\n")) for n, line in text.numbered() if line.strip("\r\n \t"))
    text.head.extend(islice(numbered, _HEAD))
    if not text.head:
        raise UserError(f"{path} is empty; fetch it again or point dataset.path at data.")
    return text


def _copy(path: Path, folder: Path, encoding: str) -> tuple[Path, int]:
    """The text in UTF-8, each line ended by a line feed, and how many there are."""
    handle, name = tempfile.mkstemp(suffix=".txt", dir=folder)
    lines = 0
    errors = "surrogateescape" if encoding == "utf-8" else "strict"
    with readable(path), open_raw(path) as stream, os.fdopen(handle, "wb") as copy:
        text = io.TextIOWrapper(stream, encoding, errors=errors, newline=None)
        try:
            while block := text.read(_CHUNK):
                copy.write(block.encode("utf-8", errors))
                lines += block.count("\n")
        except UnicodeError as error:
            raise UserError(
                f"{path} is not text in {encoding} ({excerpt(error)}); name its encoding with "
                "dataset.encoding=, such as latin-1, or save it as UTF-8."
            ) from error
        copy.write(b"\n")
    return Path(name), lines + 1
