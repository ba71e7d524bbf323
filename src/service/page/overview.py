"""The first page: what runs, what came out of it, and how much is stored."""

from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from src.service.page.answer import html, render
from src.service.page.curves import draw_sparkline
from src.service.runs.live import LiveRuns
from src.service.service import Service
from src.service.store.runs import Run, count_by_state, list_points, list_runs
from src.service.store.usage import find_usage

NUM_SHOWN = 20


async def show(request: Request, owner: str) -> Response:
    """GET /."""
    return html(request, "overview.html", **await _now(request, owner))


async def state(request: Request, owner: str) -> Response:
    """GET /state: the same as it is now, for the page's script."""
    parts = {"now": render("parts/overview.html", **await _now(request, owner))}
    return JSONResponse({"is_final": False, "parts": parts})


async def _now(request: Request, owner: str) -> dict[str, Any]:
    service: Service = request.app.state.service
    found = await service.database.read(_read, owner, service.live_runs)
    return {**found, "most_bytes": service.settings.stored_bytes}


def _read(connection: Connection, owner: str, live_runs: LiveRuns) -> dict[str, Any]:
    def shown(kind: str) -> list[dict[str, Any]]:
        rows = list_runs(connection, owner, kind, limit=NUM_SHOWN)
        return [{"run": row, "status": status_of(row, live_runs)} for row in rows]

    trainings = shown("training")
    for training in trainings:
        records = [point.record for point in list_points(connection, training["run"].id)]
        training["sparkline"] = draw_sparkline(records)
    return {
        "trainings": trainings,
        "predictions": shown("prediction"),
        "counts": count_by_state(connection, owner, "prediction"),
        "stored": find_usage(connection, owner)[0],
    }


def status_of(row: Run, live_runs: LiveRuns) -> str:
    """Return the state of a run at this moment."""
    live = live_runs.get(row.id)
    return row.status if live is None or row.completed_at else live.status
