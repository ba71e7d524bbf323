"""Two versions side by side: one question, two answers that stream at once."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from src.service.http.addresses import base_url
from src.service.http.body import read_form
from src.service.http.problem import Problem
from src.service.page.answer import html, see
from src.service.page.form import faults_of, make_fields, read_fields
from src.service.page.runs import view_run
from src.service.replicate import predictions as api
from src.service.replicate.checks.find_version import find_version
from src.service.service import Service
from src.service.store.models import base_model_name, latest_version, own_versions
from src.service.store.runs import Run, find_run

INPUTS = (
    "prompt", "system_prompt", "max_new_tokens", "temperature", "top_p", "top_k",
    "repetition_penalty", "stop_sequences", "seed",
)  # fmt: skip
SIDES = ("left", "right")
FIRST = ("prompt", "system_prompt")


async def show(request: Request, owner: str) -> Response:
    """GET /playground: the form, with the answers of the runs that the query names."""
    service: Service = request.app.state.service
    runs: dict[str, Run] = {}
    for side in SIDES:
        row = await service.database.read(find_run, request.query_params.get(side, ""), owner)
        if row is not None and row.kind == "prediction":
            runs[side] = row
    written = None
    if runs:
        inputs = next(iter(runs.values())).input or {}
        written = {
            field.name: str(inputs.get(field.name, field.value))
            for field in make_fields(service.schema, "Input", only=INPUTS)
        }
    chosen = {side: row.version for side, row in runs.items()}
    if not runs and (version := request.query_params.get("version")):
        chosen = {"left": await _base_version(service), "right": version}
    return await _show(request, owner, chosen, written, runs=runs)


async def ask(request: Request, owner: str) -> Response:
    """POST /playground: a prediction by each version that was chosen."""
    service: Service = request.app.state.service
    async with read_form(request) as form:
        chosen = {side: version for side in SIDES if (version := str(form.get(side, "")))}
        written, inputs = read_fields(service.schema, "Input", form, only=INPUTS)
    inputs["prompt"] = written["prompt"]
    body, base, query = {"input": inputs}, base_url(request), []
    try:
        if not chosen:
            raise Problem(422, "choose a version")
        for side, version in chosen.items():
            row, _ = await service.predictions.create(
                lambda connection, version=version: api.checked_values(
                    connection,
                    service,
                    owner,
                    find_version(connection, version, owner),
                    body,
                    base,
                    source="web",
                )
            )
            query.append(f"{side}={row.id}")
    except Problem as problem:
        return await _show(request, owner, chosen, written, problem=problem)
    return see(f"/playground?{'&'.join(query)}#answers")


async def _show(
    request: Request,
    owner: str,
    chosen: dict[str, str],
    written: dict[str, str] | None,
    *,
    runs: dict[str, Run] | None = None,
    problem: Problem | None = None,
) -> Response:
    service: Service = request.app.state.service
    faults, error = faults_of(problem) if problem is not None else ({}, "")
    fields = make_fields(service.schema, "Input", written, faults, only=INPUTS)
    versions = {await _base_version(service): base_model_name(service.settings.base_model)}
    for row in await service.database.read(own_versions, owner):
        versions[row.id] = f"{row.model_owner}/{row.model_name}:{row.id[:8]}"
    answers: list[dict[str, Any]] = []
    for side, row in (runs or {}).items():
        label = versions.get(row.version, f"{row.model}:{row.version[:8]}")
        stream = f"/v1/streams/{row.id}/{row.capability}"
        answers.append(
            {**await view_run(service, row), "label": label, "stream": stream} | {"side": side}
        )
    return html(
        request,
        "playground.html",
        status=200 if problem is None else problem.status,
        first=[field for field in fields if field.name in FIRST],
        more=[field for field in fields if field.name not in FIRST],
        versions=versions,
        chosen=chosen or {"left": next(iter(versions))},
        answers=answers,
        error=error,
    )


async def _base_version(service: Service) -> str:
    owner, _, name = base_model_name(service.settings.base_model).partition("/")
    version = await service.database.read(latest_version, owner, name)
    assert version is not None
    return version.id
