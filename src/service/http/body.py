"""JSON bodies, whatever their Content-Type says: curl's default is that of a form."""

import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from src.service.http.problem import Problem, invalid

MAX_JSON_BYTES = 150 << 20
"""A training file of 100 MB as a data URL."""


async def read_body(request: Request, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the body; raises Problem for one that is too large."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise Problem(413, f"expected a body of at most {max_bytes:,} bytes, found more")
    except ClientDisconnect:
        raise Problem(400, "the body broke off") from None
    return bytes(body)


async def read_object(request: Request, known: frozenset[str] | None = None) -> dict[str, Any]:
    """Return a JSON object, with known keys only where they are given; raises Problem."""
    body = await read_body(request)
    try:
        value = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "not valid"
        raise Problem(400, f"expected a JSON object as the body, found no JSON: {reason}") from None
    if not isinstance(value, dict):
        raise Problem(400, f"expected a JSON object as the body, found a {type(value).__name__}")
    if known is not None and (unknown := sorted(value.keys() - known)):
        raise invalid(
            unknown[0][:100],
            f"Additional property {unknown[0][:100]} is not allowed",
            "additional_property_not_allowed",
        )
    return value


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
