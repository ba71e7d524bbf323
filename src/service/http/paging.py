"""Pages of a list, the newest first, with the absolute addresses of those before and behind."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

from src.service.http.addresses import base_url
from src.service.http.problem import invalid
from src.service.store.database import Place

PAGE_SIZE = 100
_BEFORE = "before "
"""Begins the cursor of a page that ends before its row."""


def read_cursor(request: Request) -> Place | None:
    """Return where a page lies; raises Problem for a cursor that is none."""
    cursor = request.query_params.get("cursor")
    if not cursor:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise invalid("cursor", "expected the cursor of a page") from None
    if "\0" in text:
        raise invalid("cursor", "expected the cursor of a page")
    created_at, _, name = text.removeprefix(_BEFORE).partition(" ")
    return Place(created_at, name, text.startswith(_BEFORE))


def page(
    request: Request,
    rows: Sequence[Any],
    render: Callable[[Any], dict[str, Any]],
    position: Callable[[Any], tuple[str, str]],
) -> dict[str, Any]:
    """Return a page of rows, of which the list gave one more than fit if there are more."""
    place = read_cursor(request)
    is_back = place is not None and place.is_before
    has_more = len(rows) > PAGE_SIZE
    rows = rows[-PAGE_SIZE:] if is_back else rows[:PAGE_SIZE]
    previous = following = None
    if rows and (has_more if is_back else place is not None):
        previous = _address(request, Place(*position(rows[0]), is_before=True))
    if rows and (is_back or has_more):
        following = _address(request, Place(*position(rows[-1])))
    return {
        "previous": previous,
        "next": following,
        "results": [render(row) for row in rows],
    }


def _address(request: Request, place: Place) -> str:
    text = f"{_BEFORE * place.is_before}{place.created_at} {place.name}"
    cursor = base64.urlsafe_b64encode(text.encode()).decode()
    query = urlencode({**request.query_params, "cursor": cursor})
    return f"{base_url(request)}{request.url.path}?{query}"
