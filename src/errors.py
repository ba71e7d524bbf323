"""The one kind of error that a user can do something about."""


class UserError(ValueError):
    """A sentence that says what is wrong, where, what was found, and what is expected."""
