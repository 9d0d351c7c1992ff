"""Text of ids alone, without times: a user's items on one line, or a ``user item`` pair a line.

``user item item item …``, oldest first, separated by blanks; or, as SASRec's data come,
``user item`` on every line, in order.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.columns import IdColumn
from sigma.datamodules.readers.lines import open_raw, readable
from sigma.datamodules.readers.malformed import LeftOut
from sigma.datamodules.readers.stream import Columns, read_delimited
from sigma.errors import UserError, excerpt

_HEAD = 1000  # lines that tell which of the two it is
_TOKENS = 1 << 20  # items held as Python strings at once


def kind(path: Path) -> str:
    """``pairs`` or ``sequences``, told from the first lines.

    Raises:
        UserError: neither: columns without a header.
    """
    users: list[str] = []
    widths: set[int] = set()
    with readable(path), open_raw(path) as stream:
        for line in itertools.islice(stream, _HEAD):
            if fields := line.decode("utf-8", "replace").split():
                users.append(fields[0])
                widths.add(len(fields))
    if len(set(users)) == len(users) and not (widths == {2} and len(users) == _HEAD):
        return "sequences"
    if widths == {2}:
        return "pairs"
    if len(widths) == 1 and len(users) > 10 and len(set(users)) < len(users) / 2:
        raise UserError(
            f"{path} has {widths.pop()} columns and no header; put a line with their names above "
            "it, such as user_id, item_id and timestamp, and name the file .tsv or .csv."
        )
    return "sequences"


def read_pairs(path: Path, malformed: str = "error") -> Interactions:
    """Read one ``user item`` pair a line; each user's are in order."""
    with readable(path), open_raw(path) as stream:
        first = next((line for line in stream if line.strip()), b"").strip(b"\r\n")
    delimiter = "\t" if b"\t" in first else " "
    if first.split(delimiter.encode()) != first.split():
        return _read_loose_pairs(path, malformed)
    columns = Columns("user", "item", None)
    return read_delimited(
        path, columns, delimiter, ("user", "item"), quoted=False, malformed=malformed
    )


def _fields(lines: Iterable[bytes], left_out: LeftOut) -> Iterator[tuple[int, list[str]]]:
    """``(number from 1, fields)`` of each line that is not blank; those not of UTF-8 are noted."""
    for number, raw in enumerate(lines, start=1):
        try:
            fields = raw.decode("utf-8-sig" if number == 1 else "utf-8").split()
        except UnicodeDecodeError:
            reason = "the bytes are not UTF-8 text"
            left_out.add(number, number, reason, "save the file as UTF-8")
            continue
        if fields:
            yield number, fields


def _read_loose_pairs(path: Path, malformed: str) -> Interactions:
    """Pairs with any blanks between and around, as numbers in aligned columns are written."""
    where = lambda row: str(path)  # noqa: E731
    users, items = IdColumn("user", where), IdColumn("item", where)
    left_out = LeftOut(path, malformed)
    pairs: list[list[str]] = []
    found = 0

    def flush() -> None:
        for at, column in enumerate((users, items)):
            column.add(pa.array([pair[at] for pair in pairs], pa.string()))
        pairs.clear()

    with readable(path), open_raw(path) as lines:
        for number, fields in _fields(lines, left_out):
            if len(fields) != 2:
                reason = f"expected 'user item', got {len(fields)} fields"
                left_out.add(number, number, reason, "correct or remove the line")
                continue
            pairs.append(fields)
            found += 1
            if len(pairs) >= _TOKENS:
                flush()
    if not found:
        raise UserError(f"{path} is empty; fetch it again or point dataset.path at data.")
    flush()
    user_codes, user_ids = users.finish()
    item_codes, item_ids = items.finish()
    return Interactions(
        user_codes, item_codes, None, user_ids, item_ids, skipped=left_out.skipped()
    )


def read_sequence_text(path: Path, malformed: str = "error") -> Interactions:
    """Read one-user-a-line sequence text.

    Args:
        path: the file, gzipped or not.
        malformed: ``skip`` leaves out malformed lines, each a whole user, unless they are too many.

    Raises:
        UserError: a line without items, a user on two lines, or text that is not UTF-8.
    """
    users: dict[str, int] = {}
    lengths: list[int] = []
    tokens: list[str] = []
    items = IdColumn("item", lambda row: str(path))
    left_out = LeftOut(path, malformed)
    with readable(path), open_raw(path) as lines:
        for number, (user, *rest) in _fields(lines, left_out):
            if not rest:
                reason = f"expected 'user item item …', got only '{excerpt(user)}'"
                left_out.add(number, number, reason, "add the user's items or remove the line")
                continue
            if users.setdefault(user, len(lengths)) != len(lengths):
                reason = f"user '{excerpt(user)}' stands on an earlier line, too"
                left_out.add(number, number, reason, "put all items of a user on one line")
                continue
            lengths.append(len(rest))
            tokens += rest
            if len(tokens) >= _TOKENS:
                items.add(pa.array(tokens))
                tokens = []
    if not lengths:
        raise UserError(f"{path} is empty; fetch it again or point dataset.path at data.")
    items.add(pa.array(tokens, pa.string()))
    codes, item_ids = items.finish()
    return Interactions(
        users=np.repeat(np.arange(len(users), dtype=np.int32), lengths),
        items=codes,
        timestamps=None,
        user_ids=np.array(list(users), dtype=object),
        item_ids=item_ids,
        skipped=left_out.skipped(),
    )
