"""Exceptions whose message is shown to the user as one sentence, without a traceback."""

from collections.abc import Iterable
from unicodedata import category

_HALF = 550  # characters of half a sentence; a path alone may have 4,096


class UserError(ValueError):
    """Something the user can mend: the message is one sentence, what is wrong and what to do.

    It stays one line of bounded length whatever it quotes: what is too long loses its middle, so
    that the file's name and the advice are there.
    """

    exit_code = 1

    def __init__(self, sentence: str) -> None:
        text = printable(sentence)
        super().__init__(text if len(text) <= 2 * _HALF else f"{text[:_HALF]}…{text[1 - _HALF :]}")


class RunTakenError(UserError):
    """Another process is at this run; later it may be free (EX_TEMPFAIL)."""

    exit_code = 75


def printable(text: str) -> str:
    """Text for a terminal or a message: what would act there is written as its escape."""
    return "".join(
        sign if sign.isprintable() or category(sign) == "Zs" else ascii(sign)[1:-1] for sign in text
    )


def excerpt(value: object, limit: int = 40) -> str:
    """What a message quotes of somebody's file: its first characters, none of which acts."""
    text = str(value)
    return printable(text[:limit]) + "…" * (len(text) > limit)


def listed(names: Iterable[object], limit: int = 40) -> str:
    """What a message quotes of many names: the first eight, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 8:,} more" if len(names) > 8 else ""
    return ", ".join(excerpt(name, limit) for name in names[:8]) + more
