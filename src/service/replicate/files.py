"""Files over HTTP, the two-step uploads of 2023, and the download of weights."""

import json
import mimetypes
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from src.service.files.keep import keep_file, keep_upload
from src.service.files.removal import delete_bytes
from src.service.http.addresses import base_url
from src.service.http.body import parse_json, read_chunks, read_form, unicode_text
from src.service.http.paging import PAGE_SIZE, page, read_cursor
from src.service.http.problem import Problem, invalid, not_found
from src.service.replicate.objects import render_file
from src.service.service import Service
from src.service.store.file_rows import (
    File,
    add_file,
    delete_file,
    find_file,
    list_files,
)
from src.service.store.ids import new_id
from src.service.store.models import find_version
from src.service.times import now_text

MAX_NAME_BYTES = 255
READ_BYTES = 1 << 20
_MEDIA_TYPE = re.compile(r"[!-~]{1,100}/[ -~]{1,100}")


async def create(request: Request, owner: str) -> Response:
    """POST /files: a form with the part `content`; the other parts differ from client to client."""
    row = await accept(request, owner)
    return JSONResponse(render_file(row, base_url(request)), 201)


async def accept(request: Request, owner: str) -> File:
    """Store the file of such a form; raises Problem."""
    service: Service = request.app.state.service
    async with read_form(request, max_files=4) as form:
        content = form.get("content")
        if not isinstance(content, UploadFile):
            raise invalid("content", "expected a file as the form's part `content`", "required")
        name = _checked_name(str(form.get("filename") or content.filename or "file"))
        guessed = mimetypes.guess_type(name)[0] or "application/octet-stream"
        kind = str(form.get("type") or content.content_type or guessed)
        if not _MEDIA_TYPE.fullmatch(kind):
            raise invalid("type", f"expected a media type, found {json.dumps(kind[:80])}")
        metadata = await _metadata(form)
        keep = service.settings.keep_files_seconds
        values = {
            "id": new_id(), "owner": owner, "name": name, "api": "replicate",
            "content_type": kind, "metadata": metadata,
            "expires_at": keep and now_text(plus_seconds=keep),
        }  # fmt: skip
        return await keep_file(service, values, _chunks(content))


async def list_all(request: Request, owner: str) -> Response:
    """GET /files."""
    service: Service = request.app.state.service
    cursor = read_cursor(request)
    rows = await service.database.read(
        lambda connection: list_files(
            connection, owner, "replicate", limit=PAGE_SIZE + 1, place=cursor
        )
    )
    base = base_url(request)
    rendered = page(
        request, rows, lambda row: render_file(row, base), lambda row: (row.created_at, row.id)
    )
    return JSONResponse(rendered)


async def get(request: Request, owner: str) -> Response:
    """GET /files/{id}."""
    return JSONResponse(render_file(await _own(request, owner), base_url(request)))


async def delete(request: Request, owner: str) -> Response:
    """DELETE /files/{id}."""
    service: Service = request.app.state.service
    file = await _own(request, owner)
    await delete_bytes(service.database, service.blobs, file.id, delete_file, file.id)
    return Response(status_code=204)


async def download(request: Request) -> Response:
    """GET /files/{id}/download, by a signature in place of a token."""
    service: Service = request.app.state.service
    query = request.query_params
    owner, file_id = query.get("owner", ""), request.path_params["id"]
    signature, expiry = query.get("signature", ""), query.get("expiry", "")
    if not service.signer.is_download(owner, file_id, expiry, signature, time.time()):
        raise Problem(403, "expected a valid signature that has not expired")
    file = await service.database.read(find_file, file_id, owner)
    if file is None:
        raise not_found("The file")
    return await send_bytes(request, file.id, file.size, file.name, file.content_type)


async def begin_upload(request: Request, owner: str) -> Response:
    """POST /upload/{filename}: where to put the bytes, and where they will be read."""
    service: Service = request.app.state.service
    name = _checked_name(request.path_params["filename"])
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    values = {"owner": owner, "name": name, "content_type": kind, "api": "upload"}
    row = await service.database.write(add_file, values)
    url = f"{base_url(request)}/v1/uploads/{row.id}/{row.capability}/{quote(name)}"
    return JSONResponse({"upload_url": url, "serving_url": url})


async def put_upload(request: Request) -> Response:
    """PUT upload_url: the bytes, once."""
    service: Service = request.app.state.service
    with _alone(service.uploads, request.path_params["id"]):
        file = await _told(request)
        if file.size is not None:
            raise Problem(409, "the bytes of this upload have come already")
        await service.check_room(file.owner, int(request.headers.get("content-length") or 0))
        await keep_upload(service, file, read_chunks(request))
    return Response(status_code=200)


async def get_upload(request: Request) -> Response:
    """GET serving_url."""
    file = await _told(request)
    if file.size is None:
        raise not_found("The upload")
    return await send_bytes(request, file.id, file.size, file.name, file.content_type)


async def get_weights(request: Request) -> Response:
    """GET output.weights of a training, for whoever was told the address."""
    service: Service = request.app.state.service
    path = request.path_params
    version = await service.database.read(find_version, path["id"])
    if version is None or version.weights is None or version.capability != path["capability"]:
        raise not_found("The weights")
    return await send_bytes(
        request, version.weights, version.size, "weights.tar", "application/x-tar"
    )


async def send_bytes(request: Request, key: str, size: int, name: str, kind: str) -> Response:
    """Answer with stored bytes, or the range of them that is asked for."""
    service: Service = request.app.state.service
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}",
        "Content-Length": str(size),
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(service.blobs.get(key), media_type=kind, headers=headers)


@contextmanager
def _alone(uploads: set[str], upload_id: str) -> Iterator[None]:
    """Context of an upload whose bytes come; raises Problem where they come already."""
    if upload_id in uploads:
        raise Problem(409, "the bytes of this upload are coming already")
    uploads.add(upload_id)
    try:
        yield
    finally:
        uploads.remove(upload_id)


async def _chunks(content: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await content.read(READ_BYTES):
        yield chunk


async def _metadata(form: Any) -> dict[str, Any]:
    part = form.get("metadata")
    if isinstance(part, UploadFile):
        part = await part.read(READ_BYTES)
    try:
        metadata = parse_json(part) if part else {}
    except ValueError:
        raise invalid("metadata", "expected a JSON object") from None
    if not isinstance(metadata, dict):
        raise invalid("metadata", "expected a JSON object")
    for name, value in form.multi_items():
        if name.startswith("metadata[") and name.endswith("]"):
            metadata[unicode_text(name[9:-1])] = unicode_text(str(value))
    return metadata


def _checked_name(name: str) -> str:
    name = unicode_text(name).rpartition("/")[2]
    if not name or len(name.encode()) > MAX_NAME_BYTES:
        raise invalid("filename", f"expected a name of 1 to {MAX_NAME_BYTES} bytes")
    return name


async def _own(request: Request, owner: str) -> File:
    service: Service = request.app.state.service
    file = await service.database.read(find_file, request.path_params["id"], owner)
    if file is None or file.api == "openai":
        raise not_found("The file")
    return file


async def _told(request: Request) -> File:
    service: Service = request.app.state.service
    file = await service.database.read(find_file, request.path_params["id"])
    if file is None or file.capability != request.path_params["capability"]:
        raise not_found("The upload")
    return file
