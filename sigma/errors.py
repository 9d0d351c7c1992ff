"""Exceptions whose message is shown to the user as one sentence, without a traceback."""


class UserError(ValueError):
    """Something the user can mend: the message is one sentence, what is wrong and what to do."""

    exit_code = 1


class RunTakenError(UserError):
    """Another process is at this run; later it may be free (EX_TEMPFAIL)."""

    exit_code = 75
