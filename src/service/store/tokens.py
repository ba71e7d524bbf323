"""Who may ask: tokens, of which only hashes are kept, and the service's own secrets."""

import hashlib
import re
import secrets as random
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from src.base_models import KNOWN_MODELS
from src.errors import UserError
from src.service.store.models import OWNERS
from src.service.store.schema import secrets, tokens
from src.service.times import now_text

FIRST_OWNER = "me"
_OWNER = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
PATHS = (
    "v1", "openai", "models", "predictions", "trainings", "files", "deployments", "collections",
    "account", "hardware", "search", "upload", "uploads", "weights", "streams", "webhooks",
    "health", "metrics", "static", "runs", "new", "create", "playground", "sign-in", "sign-out",
)  # fmt: skip
"""What paths of the service begin with: the models of an owner lie at /owner/name."""
_TAKEN = {*OWNERS.values(), *KNOWN_MODELS, *PATHS, "local", "ft"}


def add_token(connection: Connection, owner: str) -> str:
    """Make a token for an owner and return it: it can never be shown again.

    Raises UserError for a name that cannot be an owner's.
    """
    if not _OWNER.fullmatch(owner) or owner in _TAKEN:
        raise UserError(
            f"token add: expected a name of lowercase letters, digits, dots and dashes that is "
            f"neither a base model's owner nor a path of the service, found {owner[:80]!r}"
        )
    token = f"r8_{random.token_hex(20)}"
    row = {"hash": hash_token(token), "owner": owner, "shown": token[:7], "created_at": now_text()}
    connection.execute(insert(tokens).values(row))
    return token


def owner_of_hash(connection: Connection, key: str) -> str | None:
    """Return whose token has this hash."""
    query = select(tokens.c.owner).where(tokens.c.hash == key)
    return connection.execute(query).scalar_one_or_none()


def list_tokens(connection: Connection) -> Sequence[Row[Any]]:
    """Return the tokens' owners, beginnings and times."""
    return connection.execute(select(tokens).order_by(tokens.c.created_at)).all()


def remove_tokens(connection: Connection, name: str) -> int:
    """Remove an owner's tokens, or the one that begins so; return how many."""
    query = delete(tokens).where((tokens.c.owner == name) | (tokens.c.shown == name[:7]))
    return connection.execute(query).rowcount


def keep_secret(connection: Connection, name: str, fresh: str) -> str:
    """Return a secret of the service, the fresh one where there was none yet."""
    query = select(secrets.c.value).where(secrets.c.name == name)
    value = connection.execute(query).scalar_one_or_none()
    if value is None:
        connection.execute(insert(secrets).values(name=name, value=fresh))
    return value or fresh


def hash_token(token: str) -> str:
    """Return what is kept of a token."""
    # Tokens are random and long: a plain hash cannot be turned around.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
