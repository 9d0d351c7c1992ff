"""The one exception whose message is shown to the user without a traceback."""


class UserError(ValueError):
    """Something the user can mend: the message is one sentence, what is wrong and what to do."""
