"""A new training: a file, what it would be trained to, and the form that starts it."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from src.service.files.removal import delete_bytes
from src.service.files.training_files import check_files
from src.service.http.addresses import base_url
from src.service.http.body import read_form
from src.service.http.problem import Problem
from src.service.page.answer import html, render, see
from src.service.page.form import faults_of, make_fields, read_fields
from src.service.page.models import new_model, own_models
from src.service.page.new.report import show_report
from src.service.replicate import files as files_api
from src.service.replicate import models as models_api
from src.service.replicate import trainings as api
from src.service.replicate.checks.find_version import find_version
from src.service.runs.input_check import check_inputs
from src.service.runs.inputs import DATA_FILES
from src.service.service import Service
from src.service.store.file_rows import delete_file, find_file, list_files
from src.service.store.models import base_model_name, delete_model
from src.service.store.runs import Run

MOST_FILES = 50
FIRST = (
    "num_train_epochs", "learning_rate", "train_batch_size", "max_steps", "validation_prompt",
    "system_prompt",
)  # fmt: skip


async def show(request: Request, owner: str) -> Response:
    """GET /new: the form for the files that the query names."""
    return await _show(request, owner, request.query_params)


async def upload(request: Request, owner: str) -> Response:
    """POST /new/upload: a file, taken if it holds examples."""
    service: Service = request.app.state.service
    query = dict(request.query_params)
    name = query.pop("for", "train_data")
    try:
        file = await files_api.accept(request, owner)
        base = base_url(request)
        try:
            await check_files(service, {name: f"{base}/v1/files/{file.id}"}, owner, base)
        except Problem:
            await delete_bytes(service.database, service.blobs, file.id, delete_file, file.id)
            raise
    except Problem as problem:
        faults, rest = faults_of(problem)
        error = faults.get(name) or rest or problem.detail
        return await _show(request, owner, query, faults={name: error}, status=problem.status)
    return see(f"/new?{urlencode({**query, name: file.id})}")


async def report(request: Request, owner: str) -> Response:
    """POST /new/report: what a training with these inputs would do; the script asks for a part."""
    service: Service = request.app.state.service
    async with read_form(request) as form:
        values = {name: str(value) for name, value in form.items()}
    _, inputs = read_fields(service.schema, "TrainingInput", values, only=None)
    files = _files(values)
    try:
        check_inputs({**inputs, **files}, service.schema, "TrainingInput", only_known=True)
        told = await request.app.state.previews.look_ahead(owner, inputs, files)
        part, status, problem = show_report(told), 200, None
    except Problem as error:
        part, status, problem = render("parts/report_error.html", error=error.detail), 422, error
    if "part" in request.query_params:
        return HTMLResponse(part)
    faults = {} if problem is None else faults_of(problem)[0]
    return await _show(request, owner, values, report=part, faults=faults, status=status)


async def start(request: Request, owner: str) -> Response:
    """POST /new: start the training."""
    async with read_form(request) as form:
        values = {name: str(value) for name, value in form.items()}
    try:
        row = await _start(request, owner, values)
    except Problem as problem:
        faults, rest = faults_of(problem)
        return await _show(request, owner, values, faults=faults, error=rest, status=problem.status)
    return see(f"/runs/{row.id}")


async def _start(request: Request, owner: str, values: Mapping[str, str]) -> Run:
    service: Service = request.app.state.service
    base = base_url(request)
    _, inputs = read_fields(service.schema, "TrainingInput", values, only=None)
    inputs |= {name: f"{base}/v1/files/{id}" for name, id in _files(values).items()}
    check_inputs(inputs, service.schema, "TrainingInput", only_known=True)
    name, made = values.get("destination", ""), None
    if not name:
        body = new_model(owner, values.get("new_model", "").strip())
        made = await models_api.accept(service, owner, body)
        name = made.name
    asked = base_model_name(service.settings.base_model)
    try:
        found = await service.database.read(find_version, asked, owner)
        body = {"input": inputs, "destination": f"{owner}/{name}"}
        return await api.accept(service, owner, found, body, base, source="web")
    except Problem:
        if made is not None:
            await service.database.write(delete_model, owner, made.name)
        raise


async def _show(
    request: Request,
    owner: str,
    values: Mapping[str, str],
    *,
    report: str = "",
    faults: Mapping[str, str] | None = None,
    error: str = "",
    status: int = 200,
) -> Response:
    service: Service = request.app.state.service
    files: dict[str, Any] = {}
    for name, file_id in _files(values).items():
        file = await service.database.read(find_file, file_id, owner)
        if file is not None and file.size is not None:
            files[name] = file
    faults = dict(faults or {})
    written = None
    if request.method == "POST" and "train_data" in values:
        written, _ = read_fields(service.schema, "TrainingInput", values, only=None)
    if "name" in faults:  # of the model, which the training's form calls so
        faults["new_model"] = faults.pop("name")
    fields = make_fields(service.schema, "TrainingInput", written, faults)
    stored = await service.database.read(
        lambda connection: list_files(connection, owner, "replicate", limit=MOST_FILES)
    )
    models = await own_models(service, owner)
    suggested = _suggested(files["train_data"].name, models) if "train_data" in files else ""
    return html(
        request,
        "new.html",
        status=status,
        files=files,
        stored=[file for file in stored if file.size is not None],
        base_model=base_model_name(service.settings.base_model),
        models=models,
        destination=values.get("destination", ""),
        new_model=values.get("new_model", suggested),
        first=[field for field in fields if field.name in FIRST],
        more=[field for field in fields if field.name not in FIRST],
        report=report,
        faults=faults,
        error=error,
    )


def _files(values: Mapping[str, str]) -> dict[str, str]:
    return {name: file_id for name in DATA_FILES if (file_id := values.get(name, ""))}


def _suggested(file_name: str, models: list[Any]) -> str:
    """Return a name for a new model that no model has yet."""
    name = re.sub(r"[^a-z0-9]+", "-", file_name.lower().partition(".")[0]).strip("-")[:60]
    taken = {model.name for model in models}
    names = (name or "model", *(f"{name or 'model'}-{number}" for number in range(2, 1000)))
    return next((free for free in names if free not in taken), "")
