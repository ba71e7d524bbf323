"""What requests bring: JSON, whatever its Content-Type says (curl's is that of a form), and forms.

No text with a NUL character gets further than this: databases take none.
"""

import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from src.service.http.problem import Problem, invalid

MAX_JSON_BYTES = 150 << 20
"""A training file of 100 MB as a data URL."""
MAX_PART_BYTES = 1 << 20
"""Of a form, its files aside."""


class NoNul:
    """Middleware that refuses requests with a NUL character in their path or query."""

    def __init__(self, app: ASGIApp, answer: Callable[[Request, Problem], Response]) -> None:
        self._app, self._answer = app, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, or answer in its place."""
        app = self._app
        if scope["type"] == "http" and ("\0" in scope["path"] or b"%00" in scope["query_string"]):
            problem = Problem(400, "expected a path and a query without NUL characters")
            app = self._answer(Request(scope), problem)
        await app(scope, receive, send)


async def read_body(request: Request, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the body; raises Problem for one that is too large."""
    body = bytearray()
    async for chunk in read_chunks(request):
        body += chunk
        if len(body) > max_bytes:
            raise Problem(413, f"expected a body of at most {max_bytes:,} bytes, found more")
    return bytes(body)


async def read_chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it comes; raises Problem for one that breaks off."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise Problem(400, "the body broke off") from None


async def read_object(request: Request, known: frozenset[str] | None = None) -> dict[str, Any]:
    """Return a JSON object, with known keys only where they are given; raises Problem."""
    body = await read_body(request)
    try:
        value = parse_json(body or b"{}")
    except ValueError as error:
        raise Problem(400, f"expected a JSON object as the body, found no JSON: {error}") from None
    if not isinstance(value, dict):
        raise Problem(400, f"expected a JSON object as the body, found a {type(value).__name__}")
    if known is not None and (unknown := sorted(value.keys() - known)):
        raise invalid(
            unknown[0][:100],
            f"Additional property {unknown[0][:100]} is not allowed",
            "additional_property_not_allowed",
        )
    return value


def parse_json(body: bytes | str) -> Any:
    """Return a JSON value that every part of the service can hold and write again.

    Raises ValueError for anything else: numbers that are not finite, text that is not Unicode, and
    more levels than a parser takes.
    """
    try:
        text = body if isinstance(body, str) else body.decode(json.detect_encoding(body))
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        # Only an escape brings half of a character.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        raise
    except UnicodeError:
        raise ValueError("its text is not Unicode") from None
    except RecursionError:
        raise ValueError("it has too many levels") from None
    except ValueError:
        raise ValueError("it has a number that is not finite or too long") from None
    return value


@asynccontextmanager
async def read_form(request: Request, max_files: int = 0) -> AsyncIterator[FormData]:
    """Context of a form's parts; raises Problem for what is no form, and for NUL in its texts."""
    try:
        form = await request.form(max_files=max_files, max_part_size=MAX_PART_BYTES)
    except HTTPException as error:
        raise Problem(400, f"expected a form with parts: {error.detail}") from None
    except UnicodeError:
        raise Problem(400, "expected a form in UTF-8") from None
    except ClientDisconnect:
        raise Problem(400, "the body broke off") from None
    try:
        if any(isinstance(value, str) and "\0" in value for value in form.values()):
            raise Problem(400, "expected a form without NUL characters")
        yield form
    finally:
        await form.close()


def unicode_text(text: str) -> str:
    """Return a part's text without NUL characters and what its charset made of no Unicode."""
    return text.replace("\0", "").encode(errors="replace").decode()


def text_field(values: dict[str, Any], name: str, *, required: bool = False) -> str | None:
    """Return a field that is a text; raises Problem for anything else."""
    value = values.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, str) or (required and not value):
        raise invalid(name, f"expected a text, found {json.dumps(value)[:80]}")
    if "\0" in value:
        raise invalid(name, "expected a text without NUL characters")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
