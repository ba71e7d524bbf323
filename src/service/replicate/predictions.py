"""Predictions over HTTP: create, get, list, cancel, and the stream of their output."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from src.service.files.own_files import find_own_file
from src.service.http.addresses import base_url, own_address
from src.service.http.body import read_object, text_field
from src.service.http.paging import PAGE_SIZE, page, read_cursor
from src.service.http.problem import invalid, not_found
from src.service.http.sse import Event, stream
from src.service.replicate.checks.find_version import Found, find_current, find_version
from src.service.replicate.checks.webhook_fields import read_webhook
from src.service.replicate.objects import render_run
from src.service.runs.input_check import check_inputs
from src.service.runs.live import LiveRun
from src.service.service import Service
from src.service.store.deployments import find_deployment
from src.service.store.models import visible_model
from src.service.store.runs import Run, find_run, list_runs
from src.service.times import later, now_text, parse_time, unix_time
from src.service.work.predictions import show_live

KNOWN = frozenset(
    ("version", "input", "webhook", "webhook_completed", "webhook_events_filter", "stream")
)
MOST_WAIT_SECONDS = 60
MARGIN_SECONDS = 2.0
"""The answer of a wait arrives before clients of 60 s give up and ask again."""
LEAST_DEADLINE_SECONDS = 5
_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s?)?")


async def create(request: Request, owner: str) -> Response:
    """POST /predictions, below a model and below a deployment."""
    service: Service = request.app.state.service
    body = await read_object(request, KNOWN)
    base, created_at, wait = base_url(request), now_text(), _wait_seconds(request)
    deadline = _deadline(request, created_at)

    def accept(connection: Connection) -> dict[str, Any]:
        found, deployment = _asked_version(connection, request, body, owner)
        return checked_values(
            connection, service, owner, found, body, base,
            deployment=deployment, created_at=created_at, deadline=deadline,
        )  # fmt: skip

    row, live = await service.predictions.create(accept)
    if wait is None:
        return JSONResponse(render_run(row, base), 201)
    headers = {"Preference-Applied": request.headers["prefer"]}
    if await live.wait(wait):
        row = live.row or row
        return JSONResponse(_shown(request, row, render_run(row, base)), 201, headers)
    # Clients take any state but starting for the end, and what is there for the whole output.
    return JSONResponse(render_run(row, base, status="starting", output=None), 202, headers)


def checked_values(
    connection: Connection,
    service: Service,
    owner: str,
    found: Found,
    body: dict[str, Any],
    base: str,
    **columns: Any,
) -> dict[str, Any]:
    """Return the values of a new prediction's row, with more columns; raises Problem."""
    inputs = check_inputs(body.get("input", {}), service.schema, "Input")
    _check_weights(connection, inputs, found, base, owner)
    service.check_room_now(connection, owner, len(str(inputs)))
    return {
        "owner": owner, "model": found.model, "version": found.version.id, "input": inputs,
        "logs": found.log, "base_url": base, **columns, **read_webhook(body),
    }  # fmt: skip


async def get(request: Request, owner: str) -> Response:
    """GET /predictions/{id} and /trainings/{id}: they share their ids."""
    service: Service = request.app.state.service
    # Looked up first: what ends meanwhile is told of by its row.
    live = service.live_runs.get(request.path_params["id"])
    row = await _own_run(request, owner)
    rendered = show_live(row, live, base_url(request))
    return JSONResponse(_shown(request, row, rendered))


async def cancel(request: Request, owner: str) -> Response:
    """POST /predictions/{id}/cancel and /trainings/{id}/cancel."""
    service: Service = request.app.state.service
    row = await _own_run(request, owner)
    runs = service.predictions if row.kind == "prediction" else service.trainings
    row = await runs.cancel(row.id)
    return JSONResponse(_shown(request, row, render_run(row, base_url(request))))


async def list_predictions(request: Request, owner: str) -> Response:
    """GET /predictions."""
    return await list_kind(request, owner, "prediction")


async def list_kind(request: Request, owner: str, kind: str) -> Response:
    """Answer with a page of predictions or trainings."""
    service: Service = request.app.state.service
    query = request.query_params

    def rows(connection: Connection) -> Any:
        return list_runs(
            connection,
            owner,
            kind,
            limit=PAGE_SIZE + 1,
            place=read_cursor(request),
            created_after=_time(query.get("created_after"), "created_after"),
            created_before=_time(query.get("created_before"), "created_before"),
            source=query.get("source"),
        )

    base = base_url(request)

    def render(row: Run) -> dict[str, Any]:
        return _shown(request, row, show_live(row, service.live_runs.get(row.id), base))

    listed = await service.database.read(rows)
    return JSONResponse(page(request, listed, render, lambda row: (row.created_at, row.id)))


async def follow(request: Request) -> Response:
    """GET urls.stream: whoever was told the address may follow, without a token."""
    service: Service = request.app.state.service
    run_id = request.path_params["id"]
    run = service.live_runs.get(run_id) or await service.database.read(find_run, run_id)
    if run is None or run.capability != request.path_params["capability"]:
        raise not_found("The stream")
    body = stream(_events(run), last_event_id=request.headers.get("last-event-id"))
    headers = {"Cache-Control": "no-store", "Access-Control-Allow-Origin": "*"}
    return StreamingResponse(body, media_type="text/event-stream", headers=headers)


async def _events(run: Run | LiveRun) -> AsyncGenerator[list[Event]]:
    at = float(unix_time(run.created_at))
    ended: Run | None
    if isinstance(run, LiveRun):
        async with aclosing(run.output()) as output:
            async for texts in output:
                yield [Event("output", text, at) for text in texts]
        ended = run.row
    else:
        yield [Event("output", text, at) for text in run.output or ()]
        ended = run
    if ended is None or ended.status == "succeeded":
        yield [Event("done", "", at)]
    elif ended.status == "failed":
        yield [Event("error", ended.error or "", at), Event("done", "error", at)]
    else:
        yield [Event("done", "canceled", at)]


async def _own_run(request: Request, owner: str) -> Run:
    service: Service = request.app.state.service
    row = await service.database.read(find_run, request.path_params["id"], owner)
    if row is None:
        raise not_found("The prediction or training")
    return row


def _shown(request: Request, row: Run, rendered: dict[str, Any]) -> dict[str, Any]:
    """Return a run as this client knows its states: Replicate's own take no end but three."""
    agent = request.headers.get("user-agent", "")
    if rendered["status"] == "aborted" and agent.startswith(("replicate-", "Replicate/", "node")):
        return {**rendered, "status": "canceled"}
    return rendered


def _asked_version(
    connection: Connection, request: Request, body: dict[str, Any], owner: str
) -> tuple[Found, str | None]:
    """Return the version, and the deployment if it is one that names it; raises Problem."""
    path = request.path_params
    if "name" not in path:
        asked = text_field(body, "version", required=True) or ""
        return find_version(connection, asked, owner), None
    model_owner, name = path["owner"], path["name"]
    if request.url.path.rstrip("/").split("/")[-4] == "deployments":
        row = find_deployment(connection, model_owner, name)
        if row is None or row.owner != owner:
            raise not_found("The deployment")
        return find_version(connection, row.version, owner), f"{row.owner}/{row.name}"
    model = visible_model(connection, model_owner.lower(), name.lower(), owner)
    if model is None:
        raise not_found("The model")
    return find_current(connection, model), None


def _check_weights(
    connection: Connection, inputs: dict[str, Any], found: Found, base: str, owner: str
) -> None:
    url = inputs.get("replicate_weights")
    if not url:
        return
    if not url.lower().startswith(("http://", "https://", "data:")):
        raise invalid("input.replicate_weights", "expected an http(s) or data: URL")
    own = own_address(url, base)
    if own is not None and find_own_file(connection, own, owner) is None:
        raise invalid("input.replicate_weights", f"there is no file {own.id}")


def _wait_seconds(request: Request) -> float | None:
    preference = request.headers.get("prefer", "")
    match = re.fullmatch(r"wait(?:=(\d{1,3}))?", preference.strip())
    if match is None:
        return None
    seconds = int(match[1] or MOST_WAIT_SECONDS)
    if not 1 <= seconds <= MOST_WAIT_SECONDS:
        raise invalid("Prefer", f"expected wait=1 to wait={MOST_WAIT_SECONDS}, found {preference}")
    return min(float(seconds), MOST_WAIT_SECONDS - MARGIN_SECONDS)


def _deadline(request: Request, created_at: str) -> str | None:
    asked = request.headers.get("cancel-after")
    if not asked:
        return None
    match = _DURATION.fullmatch(asked.strip())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = hours * 3600 + minutes * 60 + seconds
    if not LEAST_DEADLINE_SECONDS <= total <= 10**7:
        raise invalid(
            "Cancel-After",
            f"expected a time such as 90s or 1h30m of at least {LEAST_DEADLINE_SECONDS} s, "
            f"found {asked[:40]}",
        )
    return later(created_at, total)


def _time(text: str | None, name: str) -> str | None:
    if not text:
        return None
    try:
        moment = parse_time(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid(name, f"expected a time in RFC 3339, found {text[:40]}") from None
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
