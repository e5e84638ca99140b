"""Errors that are meant for the user: one sentence that says what is wrong, where, and what to do."""


class UserError(RuntimeError):
    """Something the user can put right. The command line prints the message alone, without a traceback."""
