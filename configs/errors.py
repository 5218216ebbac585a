"""Errors for users: programs print their one paragraph, without a traceback."""


class UserError(ValueError):
    """A mistake that the user can correct."""


class DataError(UserError):
    """Unusable data; the message says what is wrong, where, and what to do."""
