"""Who asks: the owner of the token in the Authorization header."""

import time
from collections.abc import Awaitable, Callable
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from src.service.http.limits import RateLimits
from src.service.http.problem import Problem
from src.service.store.database import Database
from src.service.store.tokens import hash_token, owner_of_hash

Handler = Callable[[Request, str], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]
Rate = Literal["create", "other"]
KNOWN_SECONDS = 1.0
"""For so long a token that was removed may still count."""


class Owners:
    """Whose token has which hash; what the database said of it counts for a moment."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[str, float]] = {}

    async def find(self, key: str) -> str | None:
        """Return the owner of the token with this hash; None where there is none."""
        owner, until = self._known.get(key, (None, 0.0))
        if time.monotonic() < until:
            return owner
        self._known.pop(key, None)
        owner = await self._database.read(owner_of_hash, key)
        if owner is not None:
            self._known[key] = owner, time.monotonic() + KNOWN_SECONDS
        return owner


async def owner_of(request: Request) -> str:
    """Return whose token the request has; raises Problem for none."""
    scheme, _, token = request.headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() in ("bearer", "token") and token.strip():
        owners: Owners = request.app.state.service.owners
        owner = await owners.find(hash_token(token.strip()))
        if owner is not None:
            return owner
    raise Problem(
        401,
        "You did not pass a valid authentication token",
        title="Unauthenticated",
        headers={"WWW-Authenticate": "Bearer"},
    )


def authorized(handler: Handler, rate: Rate = "other") -> Endpoint:
    """Return an endpoint for requests with a token, as many as its rate allows."""

    async def endpoint(request: Request) -> Response:
        owner = await owner_of(request)
        request.state.owner = owner
        limits: RateLimits = request.app.state.service.rate_limits
        headers = limits.take(owner, rate)
        response = await handler(request, owner)
        response.headers.update(headers)
        return response

    return endpoint
