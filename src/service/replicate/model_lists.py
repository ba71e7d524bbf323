"""Lists of models over HTTP, and the search for some."""

from functools import partial
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from src.service.http.body import parse_json, read_body
from src.service.http.paging import PAGE_SIZE, page, read_cursor
from src.service.http.problem import invalid
from src.service.replicate.models import render
from src.service.service import Service
from src.service.store.database import Place
from src.service.store.models import latest_version, list_models

SORT_BY = ("latest_version_created_at", "model_created_at")
MAX_SEARCH, MAX_WORDS = 10_000, 100
"""What a search may hold: characters, and words, each of which is looked for."""


async def list_all(request: Request, owner: str) -> Response:
    """GET /models."""
    query = request.query_params
    sort_by = query.get("sort_by", SORT_BY[0])
    if sort_by not in SORT_BY:
        raise invalid("sort_by", f"expected {' or '.join(SORT_BY)}, found {sort_by[:40]!r}", "enum")
    direction = query.get("sort_direction", "desc")
    if direction not in ("asc", "desc"):
        raise invalid("sort_direction", f"expected asc or desc, found {direction[:40]!r}", "enum")
    order = {"by_version": sort_by == SORT_BY[0], "oldest_first": direction == "asc"}
    return await _answer_list(request, owner, None, **order)


async def search(request: Request, owner: str) -> Response:
    """QUERY /models: the body is the text, which two clients quote as JSON."""
    text = (await read_body(request, MAX_SEARCH)).decode(errors="replace").strip()
    if text.startswith('"'):
        try:
            text = str(parse_json(text))
        except ValueError:
            text = text.strip('"')
    return await _answer_list(request, owner, _checked_search(text))


async def find(request: Request, owner: str) -> Response:
    """GET /search."""
    service: Service = request.app.state.service
    text = _checked_search(request.query_params.get("query", ""))
    listed = await service.database.read(_listed, owner, None, text, PAGE_SIZE)
    rendered = [
        {"model": render(request, pair), "metadata": {"tags": [], "score": 1.0}} for pair in listed
    ]
    return JSONResponse({"query": text, "models": rendered, "collections": [], "pages": []})


def _checked_search(text: str) -> str:
    if len(text) > MAX_SEARCH or len(text.split()) > MAX_WORDS:
        raise invalid("query", f"expected at most {MAX_WORDS} words, found more")
    return text.replace("\0", "")


async def _answer_list(request: Request, owner: str, text: str | None, **order: bool) -> Response:
    service: Service = request.app.state.service
    cursor = read_cursor(request)
    listed = await service.database.read(
        partial(_listed, **order), owner, cursor, text, PAGE_SIZE + 1
    )

    def position(pair: Any) -> tuple[str, str]:
        return pair[0].listed_at, f"{pair[0].owner}/{pair[0].name}"

    return JSONResponse(page(request, listed, lambda pair: render(request, pair), position))


def _listed(
    connection: Connection,
    owner: str,
    place: Place | None,
    text: str | None,
    limit: int,
    **order: bool,
) -> list[Any]:
    rows = list_models(connection, owner, limit=limit, place=place, search=text, **order)
    return [(row, latest_version(connection, row.owner, row.name)) for row in rows]
