"""Files that were uploaded: their rows; the bytes lie in `Blobs` under the same id."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from src.service.store.database import Place, select_page
from src.service.store.ids import new_capability, new_id
from src.service.store.schema import files
from src.service.store.usage import change_usage
from src.service.times import now_text

File = Row[Any]


def add_file(connection: Connection, values: dict[str, Any]) -> File:
    """Insert a file; return its row."""
    row = {
        "id": new_id(), "created_at": now_text(), "metadata": {},
        "capability": new_capability(), **values,
    }  # fmt: skip
    change_usage(connection, row["owner"], stored=row.get("size") or 0)
    return connection.execute(insert(files).values(row).returning(files)).one()


def find_file(connection: Connection, file_id: str, owner: str | None = None) -> File | None:
    """Return a file, of this owner where one is given."""
    query = select(files).where(files.c.id == file_id)
    if owner is not None:
        query = query.where(files.c.owner == owner)
    return connection.execute(query).one_or_none()


def fill_file(connection: Connection, file_id: str, values: dict[str, Any]) -> None:
    """Note what bytes an upload brought."""
    filled = update(files).where(files.c.id == file_id, files.c.size.is_(None)).values(values)
    file = connection.execute(filled.returning(files.c.owner, files.c.size)).one_or_none()
    if file is not None:
        change_usage(connection, file.owner, stored=file.size)


def list_files(
    connection: Connection,
    owner: str,
    api: str | None,
    *,
    limit: int,
    place: Place | None = None,
    purpose: str | None = None,
) -> Sequence[File]:
    """Return an owner's files of one API, or all whose bytes have come; the newest first."""
    is_listed = files.c.size.is_not(None) if api is None else files.c.api == api
    query = select(files).where(files.c.owner == owner, is_listed)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    order = files.c.created_at, files.c.id
    return select_page(connection, query, *order, limit=limit, place=place)


def delete_file(connection: Connection, file_id: str) -> None:
    """Delete a file's row; its bytes are the caller's to delete."""
    deleted = delete(files).where(files.c.id == file_id).returning(files.c.owner, files.c.size)
    file = connection.execute(deleted).one_or_none()
    if file is not None:
        change_usage(connection, file.owner, stored=-(file.size or 0))


def expired_files(connection: Connection) -> Sequence[File]:
    """Return the files whose time is over."""
    return connection.execute(select(files).where(files.c.expires_at < now_text())).all()
