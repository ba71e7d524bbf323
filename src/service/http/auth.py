"""Who asks: the owner of the token in the Authorization header."""

from collections.abc import Awaitable, Callable
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from src.service.http.limits import RateLimits
from src.service.http.problem import Problem
from src.service.store.tokens import find_owner

Handler = Callable[[Request, str], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]
Rate = Literal["create", "other"]


async def owner_of(request: Request) -> str:
    """Return whose token the request has; raises Problem for none."""
    scheme, _, token = request.headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() in ("bearer", "token") and token.strip():
        database = request.app.state.service.database
        owner = await database.read(find_owner, token.strip())
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
