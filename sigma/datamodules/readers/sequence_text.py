"""One user a line: ``user item item item …``, oldest first, separated by blanks; no timestamps."""

from pathlib import Path

import numpy as np

from sigma.datamodules.interactions import Interactions, factorize
from sigma.errors import UserError


def read_sequence_text(path: Path) -> Interactions:
    """Read one-user-a-line sequence text.

    Raises:
        UserError: a line without items, or a user on two lines.
    """
    users: list[str] = []
    lengths: list[int] = []
    tokens: list[str] = []
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) == 1:
                raise UserError(
                    f"{path}, line {number}: expected 'user item item …', got only "
                    f"'{fields[0]}'; add the user's items or remove the line."
                )
            if fields[0] in seen:
                raise UserError(
                    f"{path}, line {number}: user '{fields[0]}' stands on an earlier line, too; "
                    "put all items of a user on one line."
                )
            seen.add(fields[0])
            users.append(fields[0])
            lengths.append(len(fields) - 1)
            tokens += fields[1:]
    codes, item_ids = factorize(np.asarray(tokens, dtype=object), "item", str(path))
    return Interactions(
        users=np.repeat(np.arange(len(users), dtype=np.int32), lengths),
        items=codes,
        timestamps=None,
        user_ids=np.asarray(users, dtype=object),
        item_ids=item_ids,
    )
