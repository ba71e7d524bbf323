"""Ids that are told to everyone, and capabilities that nobody can guess."""

import secrets
import string

_ALPHABET = string.ascii_lowercase + string.digits


def new_id() -> str:
    """Return a new id of 26 lowercase letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(26))


def new_capability() -> str:
    """Return a secret for a URL that works without a token."""
    return secrets.token_hex(24)
