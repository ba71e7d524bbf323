"""A training or a prediction as it runs, and after it."""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from src.service.http.problem import not_found
from src.service.page.answer import html, render, see
from src.service.page.curves import draw_losses
from src.service.replicate import predictions as api
from src.service.service import Service
from src.service.store.runs import UNFINISHED, Run, find_run, list_points
from src.service.work.predictions import show_live

SHOWN_LOG = 200_000
"""Characters of a log that are sent at once."""
_STEP = re.compile(r"^step (\d+)/(\d+) \| .*$", re.MULTILINE)


async def show(request: Request, owner: str) -> Response:
    """GET /runs/{id}: `urls.web` of a run in the API."""
    shown = await view_run(request.app.state.service, await _own(request, owner))
    return html(request, "run.html", **shown)


async def state(request: Request, owner: str) -> Response:
    """GET /runs/{id}/state: what has changed, for the page's script."""
    shown = await view_run(request.app.state.service, await _own(request, owner))
    text = shown["logs"]
    known = request.query_params.get("logs", "")
    begin = min(int(known), len(text)) if known.isdecimal() and len(known) < 12 else 0
    parts = {name: render(f"parts/{name}.html", **shown) for name in ("status", "facts")}
    if shown["run"]["kind"] == "training":
        parts["progress"] = render("parts/progress.html", **shown)
    logs = text[begin:][-SHOWN_LOG:]
    told = {"is_final": shown["is_final"], "parts": parts, "logs": logs, "next": len(text)}
    return JSONResponse(told)


async def cancel(request: Request, owner: str) -> Response:
    """POST /runs/{id}/cancel."""
    await api.cancel(request, owner)
    return see(f"/runs/{request.path_params['id']}")


async def view_run(service: Service, row: Run) -> dict[str, Any]:
    """Return what the templates of a run show."""
    run = show_live(row, service.live_runs.get(row.id), "")
    run["kind"] = row.kind
    records = []
    if row.kind == "training":
        records = [point.record for point in await service.database.read(list_points, row.id)]
    steps = list(_STEP.finditer(run["logs"]))
    return {
        "run": run,
        "is_final": run["status"] not in UNFINISHED,
        "text": "".join(run["output"] or ()) if row.kind == "prediction" else "",
        "logs": run["logs"],
        "plan": [line for line in run["logs"].splitlines() if line.startswith("plan: ")],
        "step": steps[-1] if steps else None,
        "curve": draw_losses(records),
        "samples": [record for record in records if "sample" in record],
        "shown_log": SHOWN_LOG,
    }


async def _own(request: Request, owner: str) -> Run:
    service: Service = request.app.state.service
    row = await service.database.read(find_run, request.path_params["id"], owner)
    if row is None:
        raise not_found("The prediction or training")
    return row
