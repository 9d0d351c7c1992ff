"""One user a line: ``user item item item …``, oldest first, separated by blanks; no timestamps."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from sigma.datamodules.interactions import Interactions
from sigma.datamodules.readers.columns import IdColumn
from sigma.datamodules.readers.lines import open_raw, readable
from sigma.datamodules.readers.malformed import LeftOut
from sigma.errors import UserError

_TOKENS = 1 << 20  # items held as Python strings at once


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
    number = 0
    with readable(path), open_raw(path) as lines:
        for number, raw in enumerate(lines, start=1):
            try:
                user, *rest = raw.decode("utf-8-sig" if number == 1 else "utf-8").split()
            except UnicodeDecodeError:
                reason = "the bytes are not UTF-8 text"
                left_out.add(number, number, reason, "save the file as UTF-8")
                continue
            except ValueError:  # a blank line
                continue
            if not rest:
                reason = f"expected 'user item item …', got only '{user}'"
                left_out.add(number, number, reason, "add the user's items or remove the line")
                continue
            if users.setdefault(user, len(lengths)) != len(lengths):
                reason = f"user '{user}' stands on an earlier line, too"
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
