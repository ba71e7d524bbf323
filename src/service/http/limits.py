"""How much a client may ask for: requests in a minute, runs, stored bytes, and bytes of a body."""

import math
import time
from collections.abc import Callable
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.files.printable import show_bytes
from src.service.http.problem import Problem

Rate = Literal["create", "other"]
ROOM_SECONDS = 60
"""When to ask again where only an end of the owner's own runs, or a deletion, makes room."""


class RateLimits:
    """Counts the requests of each client, in two buckets that fill up again evenly."""

    def __init__(
        self,
        creates_per_minute: int = 600,
        others_per_minute: int = 3000,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_minute: dict[Rate, int] = {
            "create": creates_per_minute,
            "other": others_per_minute,
        }
        self._clock = clock
        self._buckets: dict[tuple[str, Rate], tuple[float, float]] = {}
        """What is left, and when it was counted."""

    def take(self, client: str, rate: Rate) -> dict[str, str]:
        """Count one request, and return the headers of its answer; raises Problem 429."""
        per_minute, now = self._per_minute[rate], self._clock()
        left, counted_at = self._buckets.get((client, rate), (float(per_minute), now))
        left = min(float(per_minute), left + (now - counted_at) * per_minute / 60)
        is_allowed = left >= 1
        left -= is_allowed
        self._buckets[client, rate] = left, now
        reset = math.ceil((per_minute - left) * 60 / per_minute)
        headers = {"ratelimit-remaining": str(int(left)), "ratelimit-reset": str(reset)}
        if not is_allowed:
            wait = max(1, math.ceil((1 - left) * 60 / per_minute))
            detail = f"Request was throttled. Your rate limit resets in ~{wait}s."
            raise too_many(detail, wait, headers)
        return headers


def check_unfinished(num_unfinished: int, limit: int) -> None:
    """Raise Problem 429 for an owner whose waiting and running runs are as many as may be."""
    if num_unfinished >= limit:
        raise too_many(
            f"You have {num_unfinished:,} predictions and trainings that wait or run, of at most "
            f"{limit:,}; wait for some of them, or cancel them.",
            ROOM_SECONDS,
        )


def check_stored(num_stored: int, num_more: int, limit: int) -> None:
    """Raise Problem 429 for an owner whose stored bytes leave no room for so many more."""
    if num_stored + num_more > limit:
        raise too_many(
            f"You store {show_bytes(num_stored)} of at most {show_bytes(limit)}, which leaves no "
            f"room for {show_bytes(num_more)} more; delete files, versions or predictions.",
            ROOM_SECONDS,
        )


def too_many(detail: str, wait_seconds: int, headers: dict[str, str] | None = None) -> Problem:
    """Return the answer to a client that may ask again in a while."""
    return Problem(
        429,
        detail,
        title="Too many requests",
        headers={**(headers or {}), "Retry-After": str(wait_seconds)},
    )


class BodyLimit:
    """Middleware that lets no handler read more of a body than it may."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; what it reads beyond the limit raises Problem 413 in it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        max_bytes = self._max_bytes
        declared = Headers(scope=scope).get("content-length", "")
        is_too_large = declared.isdecimal() and int(declared) > max_bytes
        num_received = 0

        async def limited() -> Message:
            nonlocal num_received
            if is_too_large:  # a client that waits for 100 Continue then sends nothing
                raise _too_large(max_bytes)
            message = await receive()
            num_received += len(message.get("body", b""))
            if num_received > max_bytes:
                raise _too_large(max_bytes)
            return message

        await self._app(scope, limited, send)


def _too_large(max_bytes: int) -> Problem:
    return Problem(
        413,
        f"expected a body of at most {max_bytes:,} bytes, found more",
        title="Request too large",
    )
