"""All trainings or predictions of an owner, page by page."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from src.service.http.paging import PAGE_SIZE, page, read_cursor
from src.service.page.answer import html
from src.service.page.overview import status_of
from src.service.service import Service
from src.service.store.runs import Run, list_runs


async def show(request: Request, owner: str) -> Response:
    """GET /runs, of the kind that the query names."""
    service: Service = request.app.state.service
    kind = "prediction" if request.query_params.get("kind") == "prediction" else "training"
    place = read_cursor(request)
    rows = await service.database.read(
        lambda connection: list_runs(connection, owner, kind, limit=PAGE_SIZE + 1, place=place)
    )

    def shown(row: Run) -> dict[str, Any]:
        return {"run": row, "status": status_of(row, service.live_runs)}

    listed = page(request, rows, shown, lambda row: (row.created_at, row.id))
    return html(request, "runs.html", kind=kind, **listed)
