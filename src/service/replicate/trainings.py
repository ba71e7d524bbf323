"""Trainings over HTTP; their get and cancel are those of predictions."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from src.service.files.training_files import bringing_files, check_files
from src.service.http.addresses import base_url
from src.service.http.body import read_object, text_field
from src.service.http.problem import Problem, invalid
from src.service.replicate.checks.find_version import Found, find_version
from src.service.replicate.checks.webhook_fields import read_webhook
from src.service.replicate.objects import render_run
from src.service.replicate.predictions import list_kind
from src.service.runs.input_check import check_inputs
from src.service.service import Service
from src.service.store.models import find_model
from src.service.store.runs import Run

KNOWN = frozenset(("destination", "input", "webhook", "webhook_completed", "webhook_events_filter"))


async def create(request: Request, owner: str) -> Response:
    """POST /models/{owner}/{name}/versions/{id}/trainings."""
    service: Service = request.app.state.service
    body = await read_object(request, KNOWN)
    path = request.path_params
    asked = f"{path['owner']}/{path['name']}:{path['version']}"
    found = await service.database.read(find_version, asked, owner)
    base = base_url(request)
    row = await accept(service, owner, found, body, base)
    return JSONResponse(render_run(row, base), 201)


async def accept(
    service: Service, owner: str, found: Found, body: dict[str, Any], base: str, **columns: Any
) -> Run:
    """Check the body of a training and queue it, with more columns of its row; raises Problem."""
    if found.version.weights is not None:
        raise invalid("version", "expected a version of a base model, found a fine-tuned one")
    destination = await _destination(service, body, owner)
    async with bringing_files(service, body.get("input", {}), owner, base) as brought:
        inputs = check_inputs(brought, service.schema, "TrainingInput", only_known=True)
        await check_files(service, inputs, owner, base)
        values: dict[str, Any] = {
            "owner": owner, "model": found.model, "version": found.version.id, "input": inputs,
            "logs": found.log, "destination": destination, "base_url": base, **columns,
            **read_webhook(body),
        }  # fmt: skip
        await service.check_room(owner, len(str(inputs)))
        return await service.trainings.create(values)


async def list_trainings(request: Request, owner: str) -> Response:
    """GET /trainings."""
    return await list_kind(request, owner, "training")


async def _destination(service: Service, body: dict[str, Any], owner: str) -> str:
    destination = text_field(body, "destination", required=True)
    assert destination is not None
    model_owner, _, name = destination.partition("/")
    model = await service.database.read(find_model, model_owner, name)
    if model is None or model.owner != owner:
        raise Problem(404, "The specified training destination does not exist")
    return destination
