"""Models and versions over HTTP."""

import re
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from src.service.files.removal import delete_bytes
from src.service.http.addresses import base_url
from src.service.http.body import read_object, text_field
from src.service.http.problem import Problem, invalid, not_found
from src.service.replicate.checks.find_version import find_version
from src.service.replicate.objects import render_model, render_version
from src.service.service import Service
from src.service.store.models import (
    Model,
    change_model,
    create_model,
    delete_model,
    delete_version,
    find_model,
    is_destination,
    is_used,
    latest_version,
    list_versions,
    visible_model,
)

NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9])?")
URLS = ("github_url", "paper_url", "license_url", "cover_image_url")
CREATE = frozenset(("owner", "name", "visibility", "hardware", "description", *URLS))
CHANGE = frozenset(("description", "readme", "weights_url", *URLS))


async def create(request: Request, owner: str) -> Response:
    """POST /models."""
    service: Service = request.app.state.service
    model = await accept(service, owner, await read_object(request, CREATE))
    return JSONResponse(render(request, (model, None)), 201)


async def accept(service: Service, owner: str, body: dict[str, Any]) -> Model:
    """Check the body of a model and create it; raises Problem."""
    values = {name: text_field(body, name) for name in CREATE}
    for field in ("owner", "name", "visibility", "hardware"):
        text_field(body, field, required=True)
    if values["owner"] != owner:
        raise Problem(403, f"expected the owner {owner}, found {values['owner']!r}")
    if not NAME.fullmatch(values["name"] or ""):
        raise invalid("name", "expected lowercase letters, digits, dashes, dots or underscores")
    if values["visibility"] not in ("public", "private"):
        raise invalid("visibility", "expected public or private", "enum")

    def insert(connection: Connection) -> Model:
        if find_model(connection, owner, str(values["name"])) is not None:
            raise Problem(
                409, f"A model named {owner}/{values['name']} exists already", title="Conflict"
            )
        return create_model(connection, values)

    return await service.database.write(insert)


async def get(request: Request, owner: str) -> Response:
    """GET /models/{owner}/{name}."""
    model = await _visible(request, owner)
    return JSONResponse(await _with_latest(request, model))


async def change(request: Request, owner: str) -> Response:
    """PATCH /models/{owner}/{name}."""
    service: Service = request.app.state.service
    body = await read_object(request, CHANGE)
    model = await _own(request, owner)
    values = {name: text_field(body, name) for name in body}
    if values:
        model = await service.database.write(change_model, model.owner, model.name, values)
    return JSONResponse(await _with_latest(request, model))


async def delete(request: Request, owner: str) -> Response:
    """DELETE /models/{owner}/{name}: of a private model without versions."""
    service: Service = request.app.state.service
    model = await _own(request, owner)

    def remove(connection: Connection) -> None:
        if list_versions(connection, model.owner, model.name):
            raise Problem(409, "A model with versions cannot be deleted: delete them first")
        if is_destination(connection, f"{model.owner}/{model.name}"):
            raise Problem(409, "A model that a training is to fill cannot be deleted")
        delete_model(connection, model.owner, model.name)

    await service.database.write(remove)
    return Response(status_code=204)


async def readme(request: Request, owner: str) -> Response:
    """GET /models/{owner}/{name}/readme."""
    model = await _visible(request, owner)
    if not model.readme:
        raise not_found("The README")
    return PlainTextResponse(model.readme)


async def examples(request: Request, owner: str) -> Response:
    """GET /models/{owner}/{name}/examples: there are none."""
    await _visible(request, owner)
    return JSONResponse({"previous": None, "next": None, "results": []})


async def versions(request: Request, owner: str) -> Response:
    """GET /models/{owner}/{name}/versions."""
    service: Service = request.app.state.service
    model = await _visible(request, owner)
    rows = await service.database.read(list_versions, model.owner, model.name)
    rendered = [render_version(row, service.schema) for row in rows]
    return JSONResponse({"previous": None, "next": None, "results": rendered})


async def get_version(request: Request, owner: str) -> Response:
    """GET /models/{owner}/{name}/versions/{version}."""
    service: Service = request.app.state.service
    model = await _visible(request, owner)
    asked = f"{model.owner}/{model.name}:{request.path_params['version']}"
    try:
        found = await service.database.read(find_version, asked, owner)
    except Problem:
        raise not_found("The version") from None
    return JSONResponse(render_version(found.version, service.schema))


async def remove_version(request: Request, owner: str) -> Response:
    """DELETE /models/{owner}/{name}/versions/{version}, with its weights."""
    service: Service = request.app.state.service
    model = await _own(request, owner)
    version_id = request.path_params["version"]

    rows = await service.database.read(list_versions, model.owner, model.name)
    version = next((row for row in rows if row.id == version_id), None)
    if version is None:
        raise not_found("The version")
    if version.weights is None:
        raise Problem(403, "The version of a base model cannot be deleted")

    def remove(connection: Connection) -> None:
        if is_used(connection, version_id):
            raise Problem(409, "A version with running predictions cannot be deleted")
        delete_version(connection, version_id)

    await delete_bytes(service.database, service.blobs, version.weights, remove)
    return Response(status_code=204)


def render(request: Request, pair: Any) -> dict[str, Any]:
    """Return a model, of a pair with its latest version, as the API shows it."""
    service: Service = request.app.state.service
    model, latest = pair
    return render_model(model, latest, base_url(request), service.schema)


async def _with_latest(request: Request, model: Model) -> dict[str, Any]:
    service: Service = request.app.state.service
    latest = await service.database.read(latest_version, model.owner, model.name)
    return render(request, (model, latest))


async def _visible(request: Request, owner: str) -> Model:
    service: Service = request.app.state.service
    path = request.path_params
    asked = path["owner"].lower(), path["name"].lower()
    model = await service.database.read(visible_model, *asked, owner)
    if model is None:
        raise not_found("The model")
    return model


async def _own(request: Request, owner: str) -> Model:
    model = await _visible(request, owner)
    if model.owner != owner:
        if model.visibility == "public":
            raise Problem(403, "You do not have permission to change this model")
        raise not_found("The model")
    return model
