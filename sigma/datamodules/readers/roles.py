"""Which columns hold users, items and times."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from sigma.errors import UserError, excerpt, listed, printable

USUAL = {
    "user": "user userid uid username reviewerid customerid visitorid sessionid session "
    "usersessionid msnodenr",
    # A review of 2023 names the product of all its variants beside that of one of them.
    "item": "item itemid iid movieid videoid productid parentasin asin businessid gmapid trackid "
    "tracksid traid songid articleid newsid bookid artistid venueid venue poiid locationid aid",
    # What tells the second comes before what may tell the day.
    "timestamp": "timestamp timestampms timems unixreviewtime unixtimestamp unixtime eventtime "
    "time ts utctime datetime createdat date eventdate datestring",
}
"""Usual names, but for case and signs; the first of those that a table has is taken."""

_LIST = re.compile(r"(list|sequence|seq|history|s)$")  # what names of lists end in

log = logging.getLogger(__name__)


def plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def usual_column(names: Iterable[str], usual: str) -> str | None:
    """The column whose name, but for case and signs, stands first in ``usual``, if any does."""
    words = usual.split()
    fits = sorted((c for c in names if plain(c) in words), key=lambda c: words.index(plain(c)))
    return fits[0] if fits else None


def role_columns(
    names: Collection[str], roles: Mapping[str, str], required: Iterable[str], path: Path
) -> dict[str, str]:
    """Role -> the column whose name is usual for it; roles without one are left out.

    Raises:
        UserError: a required role has none.
    """
    columns = {role: usual_column(names, usual) for role, usual in roles.items()}
    for role in required:
        if columns[role] is None:
            raise UserError(
                f"{path} has no column that looks like the {role}; it has: {listed(names)}. "
                f"Name it '{role}'."
            )
    return {role: name for role, name in columns.items() if name}


def choose_columns(
    kinds: Mapping[str, str], settings: Mapping[str, str], path: Path
) -> dict[str, str]:
    """Role -> column: those of the settings, else those with usual names; times may be absent.

    Args:
        kinds: the type of each column.

    Raises:
        UserError: a column of the settings is missing, or none has a usual name.
    """
    found = list(kinds)
    lists = {_LIST.sub("", plain(name)): name for name in found if kinds[name].endswith("[]")}
    columns: dict[str, str] = {}
    for role, usual in USUAL.items():
        name = settings.get(role)
        if name is not None and name not in found:
            name = name.partition(":")[0] if name.partition(":")[0] in found else name
        if name is not None and name not in found:
            raise UserError(
                f"{path} has no column '{excerpt(name)}' for dataset.columns.{role}; "
                f"it has: {listed(found)}."
            )
        column = name or usual_column(found, usual) or lists.get(usual_column(lists, usual) or "")
        if column is None and role != "timestamp":
            raise UserError(
                f"{path} has no column that looks like the {role} (such as {role}_id); name it "
                f"with dataset.columns.{role}=, it has: {listed(found)}."
            )
        if column is not None:
            columns[role] = column
    if len(set(columns.values())) < len(columns):
        raise UserError(
            f"{path}: two of dataset.columns.user, .item and .timestamp "
            f"({listed(columns.values())}) name the same column; name different ones."
        )
    for column in columns.values():
        if f"{column} (2)".lower() in map(str.lower, found):  # see ``layout.unique``
            raise UserError(
                f"{path} has several columns '{excerpt(column)}'; give each a name of its own."
            )
    return columns


def say_choice(
    found: list[str],
    columns: Mapping[str, str],
    joined: str | None,
    settings: Mapping[str, str],
    path: Path,
) -> None:
    """Tell of what could have been meant as well.

    Args:
        joined: a column that is a part of the time.
    """
    shown = printable(str(path))
    if joined is not None:
        log.warning("%s: the time is that of '%s' and '%s'.", shown, columns["timestamp"], joined)
    for role, usual in USUAL.items():
        others = [
            c for c in found if plain(c) in usual.split() and c not in (*columns.values(), joined)
        ]
        if others and role not in settings:
            log.warning(
                "%s: the %s is read from the column '%s', not from %s; name another one with "
                "dataset.columns.%s=.",
                *(shown, role, excerpt(columns[role]), listed(others), role),
            )
    if "timestamp" not in columns and not set(found) <= set(columns.values()):
        log.warning(
            "%s: none of its columns (%s) looks like a time, so its lines are taken to be in "
            "order; if one is, name it with dataset.columns.timestamp=.",
            *(shown, listed(found)),
        )
