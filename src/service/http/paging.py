"""Pages of a list, the newest first, each with the absolute address of the next one."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

from src.service.http.addresses import base_url
from src.service.http.problem import invalid

PAGE_SIZE = 100
Position = tuple[str, str]


def read_cursor(request: Request) -> Position | None:
    """Return the (created_at, id) after which a page begins; raises Problem for no cursor."""
    cursor = request.query_params.get("cursor")
    if not cursor:
        return None
    try:
        created_at, _, name = base64.urlsafe_b64decode(cursor).decode().partition(" ")
    except (binascii.Error, UnicodeError, ValueError):
        raise invalid("cursor", "expected the cursor of a page") from None
    return created_at, name


def page(
    request: Request,
    rows: Sequence[Any],
    render: Callable[[Any], dict[str, Any]],
    position: Callable[[Any], Position],
) -> dict[str, Any]:
    """Return a page of rows, of which the list gave one more than fit if there are more."""
    following = None
    if len(rows) > PAGE_SIZE:
        rows = rows[:PAGE_SIZE]
        cursor = base64.urlsafe_b64encode(" ".join(position(rows[-1])).encode()).decode()
        query = urlencode({**request.query_params, "cursor": cursor})
        following = f"{base_url(request)}{request.url.path}?{query}"
    return {"previous": None, "next": following, "results": [render(row) for row in rows]}
