"""The one exception that a user's mistake raises."""


class UserError(ValueError):
    """Something the user can mend.

    The message is one or two sentences: what was wrong, where, and what to do. The command line
    prints it after `error:` and exits with code 2; no traceback is shown.
    """
