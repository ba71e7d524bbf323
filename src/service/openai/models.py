"""Models: the base models, and each fine-tuned version that its owner has."""

from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from src.base_models import KNOWN_MODELS
from src.service.files.removal import delete_bytes
from src.service.openai.endpoint import service_of
from src.service.openai.errors import ApiError, no_such_model
from src.service.openai.find_model import find_model_version, short_name
from src.service.openai.paging import write_page
from src.service.store.models import (
    Version,
    base_model_name,
    delete_version,
    is_used,
    latest_version,
    own_versions,
)
from src.service.times import unix_time


async def list_all(request: Request, owner: str) -> Response:
    """GET /models: the base models, and the asker's own."""
    service = service_of(request)
    names = dict.fromkeys([service.settings.base_model, *KNOWN_MODELS])

    def listed(connection: Connection) -> list[dict[str, Any]]:
        bases = [
            (latest_version(connection, *base_model_name(name).split("/", 1)), short_name(name))
            for name in names
        ]
        shown = [_render(version, name) for version, name in bases if version is not None]
        return shown + [_render(version) for version in own_versions(connection, owner)]

    return JSONResponse(write_page(await service.database.read(listed)))


async def get(request: Request, owner: str) -> Response:
    """GET /models/{name}."""
    name = request.path_params["name"]
    return JSONResponse(_render(await _find(request, name, owner), name))


async def delete(request: Request, owner: str) -> Response:
    """DELETE /models/{name}: of a fine-tuned version of one's own."""
    service, name = service_of(request), request.path_params["name"]
    version = await _find(request, name, owner)
    if version.weights is None or version.model_owner != owner:
        raise ApiError(403, f"The model `{name[:200]}` is not yours to delete", param="model")

    def remove(connection: Connection) -> None:
        if is_used(connection, version.id):
            raise ApiError(409, f"The model `{name}` answers predictions that have not ended")
        delete_version(connection, version.id)

    await delete_bytes(service.database, service.blobs, version.weights, remove)
    return JSONResponse({"id": name, "object": "model", "deleted": True})


async def _find(request: Request, name: str, owner: str) -> Version:
    service = service_of(request)
    base = service.settings.base_model
    version = await service.database.read(find_model_version, name, owner, base)
    if version is None:
        raise no_such_model(name[:200])
    return version


def _render(version: Version, name: str | None = None) -> dict[str, Any]:
    full_name = f"{version.model_owner}/{version.model_name}"
    return {
        "id": name or version.alias or f"{full_name}:{version.id}",
        "object": "model",
        "created": unix_time(version.created_at),
        "owned_by": version.model_owner,
    }
