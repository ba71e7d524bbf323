"""Pages of OpenAI's lists: `limit`, and `after` with the id of the last item that a client has."""

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from src.service.openai.errors import bad_request


def read_limit(request: Request, default: int, highest: int) -> int:
    """Return how many items a page may have; raises ApiError."""
    text = request.query_params.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= highest:
        raise bad_request("limit", f"expected a number from 1 to {highest:,}, found {text[:20]!r}")
    return int(text)


def write_page(items: Sequence[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    """Return a list in OpenAI's form."""
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]} if items else {}
    return {"object": "list", "data": list(items), "has_more": has_more, **ends}


def page_after(request: Request, items: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Return the page of all items that begins behind the one named by `after`; raises ApiError."""
    after = request.query_params.get("after")
    if after:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise bad_request("after", f"there is no item {after[:80]!r} in this list")
        items = items[places[0] + 1 :]
    return write_page(items[:limit], has_more=len(items) > limit)
