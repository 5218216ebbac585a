"""Mistakes that a person can mend: programs print their paragraph, without a traceback."""


class UserError(ValueError):
    """A mistake that the user can mend: programs print its one paragraph, without a traceback."""


class DataError(UserError):
    """Something is wrong with the data; the message says what, where, and what to do."""
