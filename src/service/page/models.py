"""Models: their list, a new one, and the versions of one with their weights."""

from starlette.requests import Request
from starlette.responses import Response

from src.service.http.body import read_form
from src.service.http.problem import Problem, not_found
from src.service.page.answer import html, see
from src.service.page.form import faults_of
from src.service.replicate import models as api
from src.service.replicate.objects import weights_url
from src.service.service import Service
from src.service.store.models import Model, list_models, list_versions, visible_model

MOST_SHOWN = 1000


async def show_all(request: Request, owner: str) -> Response:
    """GET /create: the models that there are, and a form for another one."""
    return await _show_all(request, owner, {"visibility": "private"}, {}, 200)


async def create(request: Request, owner: str) -> Response:
    """POST /create."""
    service: Service = request.app.state.service
    async with read_form(request) as form:
        written = {
            field: str(form.get(field, "")).strip()
            for field in ("name", "description", "visibility")
        }
    try:
        model = await api.accept(service, owner, new_model(owner, **written))
    except Problem as problem:
        faults, rest = faults_of(problem)
        return await _show_all(request, owner, written, faults or {"name": rest}, problem.status)
    return see(f"/{model.owner}/{model.name}")


async def show(request: Request, owner: str) -> Response:
    """GET /{owner}/{name}: the address of a model in the API."""
    service: Service = request.app.state.service
    path = request.path_params
    asked = path["owner"].lower(), path["name"].lower()
    model = await service.database.read(visible_model, *asked, owner)
    if model is None:
        raise not_found("The model")
    rows = await service.database.read(list_versions, model.owner, model.name)
    is_own = model.owner == owner
    versions = [
        {
            "row": row,
            "weights": weights_url(row.id, row.capability, "") if is_own and row.weights else None,
        }
        for row in rows
    ]
    return html(request, "model.html", model=model, versions=versions, is_own=is_own)


async def delete(request: Request, owner: str) -> Response:
    """POST /{owner}/{name}/delete."""
    await api.delete(request, owner)
    return see("/create")


async def delete_version(request: Request, owner: str) -> Response:
    """POST /{owner}/{name}/versions/{version}/delete."""
    await api.remove_version(request, owner)
    path = request.path_params
    return see(f"/{path['owner']}/{path['name']}")


def new_model(
    owner: str, name: str, description: str = "", visibility: str = "private"
) -> dict[str, str]:
    """Return the body of a model, as the API takes it."""
    body = {"owner": owner, "name": name, "visibility": visibility, "hardware": "cpu"}
    return {**body, "description": description} if description else body


async def own_models(service: Service, owner: str) -> list[Model]:
    """Return the models that trainings of an owner may go to, the newest first."""
    rows = await service.database.read(lambda c: list_models(c, owner, limit=MOST_SHOWN))
    return [row for row in rows if row.owner == owner]


async def _show_all(
    request: Request, owner: str, written: dict[str, str], faults: dict[str, str], status: int
) -> Response:
    service: Service = request.app.state.service
    rows = await service.database.read(lambda c: list_models(c, owner, limit=MOST_SHOWN))
    own = [row for row in rows if row.owner == owner]
    others = [row for row in rows if row.owner != owner]
    found = {"own": own, "others": others, "written": written, "faults": faults}
    return html(request, "models.html", status=status, **found)
