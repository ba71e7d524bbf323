"""Errors that are told as the sentence they are."""


class UserError(ValueError):
    """What a user can change: it says what is wrong, where, what was found, what is expected."""


class RankLost(RuntimeError):
    """A rank of a model that is split has ended or failed: nothing more can be computed."""
