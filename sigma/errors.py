"""Exceptions whose message is shown to the user as one sentence, without a traceback."""


class UserError(ValueError):
    """Something the user can mend: the message is one sentence, what is wrong and what to do."""

    exit_code = 1


class RunTakenError(UserError):
    """Another process is at this run; later it may be free (EX_TEMPFAIL)."""

    exit_code = 75


def excerpt(value: object, limit: int = 40) -> str:
    """What a message quotes of somebody's file: its first characters, none of which acts."""
    text = str(value)
    signs = (sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text[:limit])
    return "".join(signs) + "…" * (len(text) > limit)
