"""Deployments over HTTP: other names for a version, which run nothing of their own."""

from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from src.service.http.body import read_object, text_field
from src.service.http.problem import Problem, invalid, not_found
from src.service.replicate.checks.find_version import find_version
from src.service.replicate.models import NAME
from src.service.replicate.objects import render_deployment
from src.service.service import Service
from src.service.store.deployments import (
    Deployment,
    create_deployment,
    delete_deployment,
    find_deployment,
    list_deployments,
    release_deployment,
)

CHANGE = frozenset(("version", "hardware", "min_instances", "max_instances"))
CREATE = CHANGE | {"name", "model"}
MOST_INSTANCES = {"min_instances": 5, "max_instances": 20}


async def create(request: Request, owner: str) -> Response:
    """POST /deployments."""
    service: Service = request.app.state.service
    body = await read_object(request, CREATE)
    name, model = text_field(body, "name", required=True), text_field(body, "model", required=True)
    version = text_field(body, "version", required=True)
    hardware = text_field(body, "hardware", required=True)
    if not NAME.fullmatch(name or ""):
        raise invalid("name", "expected lowercase letters, digits, dashes, dots or underscores")
    found = await service.database.read(find_version, f"{model}:{version}", owner)
    values = {
        "owner": owner, "name": name, "model": found.model, "version": found.version.id,
        "hardware": hardware, "min_instances": 0, "max_instances": 1, **_instances(body),
    }  # fmt: skip

    def insert(connection: Connection) -> Deployment:
        if find_deployment(connection, owner, str(name)) is not None:
            raise Problem(409, f"A deployment named {owner}/{name} exists already")
        return create_deployment(connection, values)

    return JSONResponse(render_deployment(await service.database.write(insert)))


async def list_all(request: Request, owner: str) -> Response:
    """GET /deployments."""
    service: Service = request.app.state.service
    rows = await service.database.read(list_deployments, owner)
    results = [render_deployment(row) for row in rows]
    return JSONResponse({"previous": None, "next": None, "results": results})


async def get(request: Request, owner: str) -> Response:
    """GET /deployments/{owner}/{name}."""
    return JSONResponse(render_deployment(await _own(request, owner)))


async def change(request: Request, owner: str) -> Response:
    """PATCH /deployments/{owner}/{name}: a new release."""
    service: Service = request.app.state.service
    body = await read_object(request, CHANGE)
    row = await _own(request, owner)
    values: dict[str, Any] = _instances(body)
    if (version := text_field(body, "version")) is not None:
        found = await service.database.read(find_version, f"{row.model}:{version}", owner)
        values["version"] = found.version.id
    if (hardware := text_field(body, "hardware")) is not None:
        values["hardware"] = hardware
    row = await service.database.write(release_deployment, row.owner, row.name, values)
    return JSONResponse(render_deployment(row))


async def delete(request: Request, owner: str) -> Response:
    """DELETE /deployments/{owner}/{name}."""
    service: Service = request.app.state.service
    row = await _own(request, owner)
    await service.database.write(delete_deployment, row.owner, row.name)
    return Response(status_code=204)


async def _own(request: Request, owner: str) -> Deployment:
    service: Service = request.app.state.service
    path = request.path_params
    row = await service.database.read(find_deployment, path["owner"], path["name"])
    if row is None or row.owner != owner:
        raise not_found("The deployment")
    return row


def _instances(body: dict[str, Any]) -> dict[str, int]:
    numbers = {}
    for name, most in MOST_INSTANCES.items():
        number = body.get(name)
        if number is None:
            continue
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
            raise invalid(name, f"expected a number from 0 to {most}", "invalid_type")
        numbers[name] = number
    return numbers
