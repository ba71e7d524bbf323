"""Keeps the bytes that a client sends: counted with what notes them, or not there at all."""

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from sqlalchemy import Connection

from src.service.files.blobs import TooLarge
from src.service.http.problem import Problem, not_found
from src.service.service import Service
from src.service.store.file_rows import File, add_file, fill_file, find_file

Result = TypeVar("Result")


async def keep_file(service: Service, values: dict[str, Any], chunks: AsyncIterator[bytes]) -> File:
    """Store the bytes of a new file and its row; raises Problem."""

    def add(connection: Connection, sums: dict[str, Any]) -> File:
        return add_file(connection, {**values, **sums})

    return await _keep(service, values["owner"], values["id"], chunks, add)


async def keep_upload(service: Service, file: File, chunks: AsyncIterator[bytes]) -> None:
    """Store the bytes of an upload that has begun; raises Problem."""

    def fill(connection: Connection, sums: dict[str, Any]) -> None:
        if find_file(connection, file.id) is None:
            raise not_found("The upload")
        fill_file(connection, file.id, sums)

    await _keep(service, file.owner, file.id, chunks, fill)


async def _keep(
    service: Service,
    owner: str,
    file_id: str,
    chunks: AsyncIterator[bytes],
    note: Callable[[Connection, dict[str, Any]], Result],
) -> Result:
    """Store bytes and return what `note` makes of their size and sums."""
    with service.blobs.pending(file_id):
        try:
            stored = await service.blobs.put(file_id, chunks, max_bytes=service.settings.file_bytes)
        except TooLarge as error:
            raise Problem(413, str(error)) from None

        def note_if_room(connection: Connection) -> Result:
            service.check_room_now(connection, owner, stored.size)
            sums = {"size": stored.size, "sha256": stored.sha256, "md5": stored.md5}
            return note(connection, sums)

        try:
            return await service.database.write(note_if_room)
        except Exception:
            await service.blobs.delete(file_id)
            raise
