"""Files: what trainings learn from, and the results that jobs leave."""

import re
from collections.abc import AsyncIterator
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from src.service.files.keep import keep_file
from src.service.files.removal import delete_bytes
from src.service.http.body import read_form, unicode_text
from src.service.openai.endpoint import service_of
from src.service.openai.errors import ApiError, bad_request
from src.service.openai.jobs.results import find_result, is_result, write_result
from src.service.openai.paging import page_after, read_limit
from src.service.store.file_rows import File, delete_file, find_file, list_files
from src.service.store.ids import new_id
from src.service.times import now_text, unix_time

PURPOSES = ("fine-tune", "assistants", "batch", "vision", "user_data", "evals")
MAX_NAME_BYTES = 255
MAX_LISTED = 10_000
READ_BYTES = 1 << 20


async def create(request: Request, owner: str) -> Response:
    """POST /files: a form with `file` and `purpose`."""
    service = service_of(request)
    async with read_form(request, max_files=2) as form:
        file, purpose = form.get("file"), form.get("purpose")
        if not isinstance(file, UploadFile):
            raise bad_request("file", "expected a file as a part of the form", "missing_parameter")
        if purpose not in PURPOSES:
            raise bad_request("purpose", f"expected one of {', '.join(PURPOSES)}")
        name = unicode_text(file.filename or "").rpartition("/")[2] or "file"
        if len(name.encode()) > MAX_NAME_BYTES:
            raise bad_request("file", f"expected a name of at most {MAX_NAME_BYTES} bytes")
        seconds = _seconds_to_live(form, service.settings.keep_files_seconds)
        values: dict[str, Any] = {
            "id": f"file-{new_id()}", "owner": owner, "name": name, "api": "openai",
            "purpose": purpose, "content_type": "application/jsonl",
            "expires_at": None if seconds is None else now_text(plus_seconds=seconds),
        }  # fmt: skip
        row = await keep_file(service, values, _chunks(file))
    return JSONResponse(render_file(row))


async def list_all(request: Request, owner: str) -> Response:
    """GET /files."""
    purpose = request.query_params.get("purpose") or None
    rows = await service_of(request).database.read(
        lambda connection: list_files(
            connection, owner, "openai", limit=MAX_LISTED, purpose=purpose
        )
    )
    if request.query_params.get("order") == "asc":
        rows = rows[::-1]
    limit = read_limit(request, MAX_LISTED, MAX_LISTED)
    return JSONResponse(page_after(request, [render_file(row) for row in rows], limit))


async def get(request: Request, owner: str) -> Response:
    """GET /files/{id}."""
    service, file_id = service_of(request), request.path_params["id"]
    if is_result(file_id):
        result = await service.database.read(find_result, file_id, owner)
        if result is None:
            raise _unknown(file_id)
        return JSONResponse(result)
    return JSONResponse(render_file(await _own(request, owner)))


async def delete(request: Request, owner: str) -> Response:
    """DELETE /files/{id}."""
    service, file_id = service_of(request), request.path_params["id"]
    if is_result(file_id):
        raise ApiError(400, "the results of a job are kept with the job, and not as a file")
    file = await _own(request, owner)
    await delete_bytes(service.database, service.blobs, file.id, delete_file, file.id)
    return JSONResponse({"id": file.id, "object": "file", "deleted": True})


async def content(request: Request, owner: str) -> Response:
    """GET /files/{id}/content: of results the CSV in base64, as OpenAI's is, or `?format=csv`."""
    service, file_id = service_of(request), request.path_params["id"]
    if is_result(file_id):
        is_plain = request.query_params.get("format") == "csv"
        text = await service.database.read(write_result, file_id, owner, is_plain)
        if text is None:
            raise _unknown(file_id)
        return Response(text, media_type="text/csv")
    file = await _own(request, owner)
    headers = {"Content-Length": str(file.size), "X-Content-Type-Options": "nosniff"}
    kind = "application/octet-stream"
    return StreamingResponse(service.blobs.get(file.id), media_type=kind, headers=headers)


def render_file(row: File) -> dict[str, Any]:
    """Return a file as OpenAI's clients read it."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.size,
        "created_at": unix_time(row.created_at),
        "expires_at": row.expires_at and unix_time(row.expires_at),
        "filename": row.name,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(READ_BYTES):
        yield chunk


def _seconds_to_live(form: FormData, default: float | None) -> float | None:
    asked = form.get("expires_after[seconds]")
    if asked is None:
        return default
    if not isinstance(asked, str) or not re.fullmatch(r"\d{4,8}", asked, re.ASCII):
        raise bad_request("expires_after.seconds", "expected a number from 3600 to 2592000")
    return float(asked) if default is None else min(float(asked), default)


async def _own(request: Request, owner: str) -> File:
    file_id = request.path_params["id"]
    file = await service_of(request).database.read(find_file, file_id, owner)
    if file is None or file.api != "openai":
        raise _unknown(file_id)
    return file


def _unknown(file_id: str) -> ApiError:
    return ApiError(404, f"No such File object: {file_id[:80]}", param="id")
