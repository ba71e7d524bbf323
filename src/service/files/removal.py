"""Bytes go with the rows that name them, even where the service is killed in between."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, select

from src.service.files.blobs import Blobs
from src.service.store.database import Database
from src.service.store.schema import files, versions


async def delete_bytes(
    database: Database, blobs: Blobs, key: str, delete_row: Callable[..., Any], *arguments: Any
) -> None:
    """Delete the row that names bytes, in a transaction of `delete_row`, and then the bytes."""
    with blobs.pending(key):
        await database.write(delete_row, *arguments)
        await blobs.delete(key)


async def delete_unnamed(database: Database, blobs: Blobs) -> None:
    """Delete what the last process left without a row; call it before anything is stored."""
    for key in blobs.left_pending:
        if not await database.read(_is_named, key):
            await blobs.delete(key)
        blobs.settle(key)


def _is_named(connection: Connection, key: str) -> bool:
    of_file = select(files.c.id).where(files.c.id == key, files.c.size.is_not(None))
    of_version = select(versions.c.id).where(versions.c.weights == key)
    return any(connection.execute(query).first() is not None for query in (of_file, of_version))
