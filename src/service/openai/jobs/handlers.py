"""Fine-tuning jobs: trainings that are asked for and told of in OpenAI's words."""

import re
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from src.service.files.training_files import check_files
from src.service.http.addresses import base_url
from src.service.http.body import read_object
from src.service.http.problem import Problem
from src.service.openai.endpoint import service_of
from src.service.openai.errors import ApiError, bad_request, no_such_model
from src.service.openai.find_model import find_model_version, short_name
from src.service.openai.jobs.objects import render_checkpoints, render_events, render_job
from src.service.openai.jobs.request import JobRequest, read_job_request
from src.service.openai.paging import page_after, read_limit, write_page
from src.service.runs.input_check import check_inputs
from src.service.store.database import Place
from src.service.store.file_rows import find_file
from src.service.store.ids import new_id
from src.service.store.models import create_model, find_model
from src.service.store.runs import Run, find_run, list_points, list_runs
from src.service.store.schema import UNFINISHED

FILES = {"training_file": "train_data", "validation_file": "validation_data"}
MAX_NAME = 60
PAGE_SIZE, MAX_PAGE = 20, 100


async def create(request: Request, owner: str) -> Response:
    """POST /fine_tuning/jobs."""
    service = service_of(request)
    asked = read_job_request(await read_object(request))
    base = service.settings.base_model
    version = await service.database.read(find_model_version, asked.model, owner, base)
    if version is None:
        raise no_such_model(asked.model)
    if version.weights is not None:
        raise bad_request("model", "expected a base model, found a fine-tuned one")
    inputs = await _inputs(request, owner, asked)
    await service.check_room(owner, len(str(inputs)))
    run_id = new_id()
    model = short_name(base) if asked.model == short_name(base) else asked.model
    destination = await service.database.write(_destination, owner, asked)
    job = {
        "model": model,
        "fine_tuned_model": f"ft:{model}:{owner}:{asked.suffix}:{run_id[:8]}",
        "training_file": asked.training_file,
        "validation_file": asked.validation_file,
        "hyperparameters": asked.hyperparameters,
        "seed": asked.seed,
        "suffix": asked.suffix,
        "metadata": asked.metadata,
    }
    row = await service.trainings.create(
        {
            "id": f"ftjob-{run_id}", "owner": owner, "version": version.id, "input": inputs,
            "model": f"{version.model_owner}/{version.model_name}", "destination": destination,
            "base_url": base_url(request), "source": "api", "job": job,
        }
    )  # fmt: skip
    return JSONResponse(render_job(row))


async def get(request: Request, owner: str) -> Response:
    """GET /fine_tuning/jobs/{id}."""
    return JSONResponse(render_job(await _own(request, owner)))


async def list_all(request: Request, owner: str) -> Response:
    """GET /fine_tuning/jobs: the newest first, `metadata[key]=value` aside all of them."""
    service = service_of(request)
    limit = read_limit(request, PAGE_SIZE, MAX_PAGE)
    query = request.query_params
    wanted = {
        match[1]: value
        for name, value in query.items()
        if (match := re.fullmatch(r"metadata\[(.*)\]", name))
    }
    place = None
    if after := query.get("after"):
        row = await service.database.read(find_run, after, owner)
        if row is None or row.job is None:
            raise bad_request("after", f"there is no job {after[:80]!r}")
        place = Place(row.created_at, row.id)

    def listed(connection: Connection) -> list[Run]:
        found: list[Run] = []
        position = place
        while len(found) <= limit:
            rows = list_runs(
                connection, owner, "training", limit=MAX_PAGE, place=position, only_jobs=True
            )
            found += [row for row in rows if wanted.items() <= (row.job["metadata"] or {}).items()]
            if len(rows) < MAX_PAGE:
                break
            position = Place(rows[-1].created_at, rows[-1].id)
        return found

    rows = await service.database.read(listed)
    jobs = [render_job(row) for row in rows[:limit]]
    return JSONResponse(write_page(jobs, has_more=len(rows) > limit))


async def cancel(request: Request, owner: str) -> Response:
    """POST /fine_tuning/jobs/{id}/cancel."""
    row = await _own(request, owner)
    if row.status not in UNFINISHED:
        status = render_job(row)["status"]
        raise ApiError(400, f"Job has already {status}.", code="invalid_job_state")
    return JSONResponse(render_job(await service_of(request).trainings.cancel(row.id)))


async def refuse_pause(request: Request, owner: str) -> Response:
    """POST /fine_tuning/jobs/{id}/pause and resume."""
    await _own(request, owner)
    raise ApiError(
        400, "A job cannot be paused here; cancel it, and create it again", code="unsupported"
    )


async def list_events(request: Request, owner: str) -> Response:
    """GET /fine_tuning/jobs/{id}/events."""
    row = await _own(request, owner)
    points = await service_of(request).database.read(list_points, row.id)
    limit = read_limit(request, PAGE_SIZE, 1000)
    return JSONResponse(page_after(request, render_events(row, points), limit))


async def list_checkpoints(request: Request, owner: str) -> Response:
    """GET /fine_tuning/jobs/{id}/checkpoints."""
    row = await _own(request, owner)
    points = await service_of(request).database.read(list_points, row.id)
    limit = read_limit(request, 10, MAX_PAGE)
    return JSONResponse(page_after(request, render_checkpoints(row, points), limit))


async def _inputs(request: Request, owner: str, asked: JobRequest) -> dict[str, Any]:
    """Return the inputs of `train`, checked with their files; raises ApiError or Problem."""
    service, base = service_of(request), base_url(request)
    inputs = dict(asked.inputs)
    for field, name in FILES.items():
        file_id = getattr(asked, field)
        if file_id is None:
            continue
        file = await service.database.read(find_file, file_id, owner)
        if file is None or file.size is None:
            raise ApiError(
                400, f"{field}: there is no file {file_id[:80]}", param=field, code="invalid_file"
            )
        inputs[name] = f"{base}/v1/files/{file_id}"
    try:
        checked = check_inputs(inputs, service.schema, "TrainingInput", only_known=True)
        await check_files(service, checked, owner, base)
    except Problem as problem:
        raise _in_openais_words(problem) from None
    return checked


def _in_openais_words(problem: Problem) -> ApiError:
    if not problem.invalid_fields:
        return ApiError(problem.status, problem.detail)
    fault = problem.invalid_fields[0]
    names = {name: field for field, name in FILES.items()}
    name = fault["field"].removeprefix("input.")
    is_file = name in names
    return bad_request(
        names.get(name, name),
        fault["description"],
        "invalid_training_file" if is_file else "invalid_value",
    )


def _destination(connection: Connection, owner: str, asked: JobRequest) -> str:
    """Return the model of the owner that gets the new version; it is made where it is not there."""
    words = re.findall(r"[a-z0-9]+", f"{asked.suffix or asked.model}".lower())
    name = f"{'-'.join(words)[:MAX_NAME].strip('-') or 'model'}-tuned"
    if find_model(connection, owner, name) is None:
        values = {"owner": owner, "name": name, "visibility": "private"}
        create_model(connection, {**values, "description": f"Fine-tuned {asked.model}"})
    return f"{owner}/{name}"


async def _own(request: Request, owner: str) -> Run:
    job_id = request.path_params["id"]
    row = await service_of(request).database.read(find_run, job_id, owner)
    if row is None or row.job is None:
        raise ApiError(
            404, f"Could not find fine tune: {job_id[:80]}", param="fine_tuning_job_id",
            code="fine_tune_not_found",
        )  # fmt: skip
    return row
