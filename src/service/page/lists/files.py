"""An owner's files with their sizes, and how much is stored of what may be."""

from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from src.service.files.removal import delete_bytes
from src.service.http.paging import PAGE_SIZE, page, read_cursor
from src.service.http.problem import not_found
from src.service.page.answer import html, see
from src.service.service import Service
from src.service.store.file_rows import delete_file, find_file, list_files
from src.service.store.usage import find_usage


async def show(request: Request, owner: str) -> Response:
    """GET /uploads."""
    service: Service = request.app.state.service
    place = read_cursor(request)

    def read(connection: Connection) -> tuple[Any, int]:
        rows = list_files(connection, owner, None, limit=PAGE_SIZE + 1, place=place)
        return rows, find_usage(connection, owner)[0]

    rows, stored = await service.database.read(read)
    listed = page(request, rows, lambda row: {"file": row}, lambda row: (row.created_at, row.id))
    most_bytes = service.settings.stored_bytes
    return html(request, "files.html", stored=stored, most_bytes=most_bytes, **listed)


async def delete(request: Request, owner: str) -> Response:
    """POST /uploads/{id}/delete."""
    service: Service = request.app.state.service
    file = await service.database.read(find_file, request.path_params["id"], owner)
    if file is None:
        raise not_found("The file")
    await delete_bytes(service.database, service.blobs, file.id, delete_file, file.id)
    return see("/uploads")
