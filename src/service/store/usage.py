"""What each owner has stored and unfinished: counts that are kept up with every change of it."""

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from src.service.store.schema import UNFINISHED, files, runs, usage, versions

_FIND = select(usage.c.stored_bytes, usage.c.unfinished).where(usage.c.owner == bindparam("of"))
_CHANGE = (
    update(usage)
    .where(usage.c.owner == bindparam("of"))
    .values(
        stored_bytes=usage.c.stored_bytes + bindparam("more_bytes"),
        unfinished=usage.c.unfinished + bindparam("more_runs"),
    )
)


def find_usage(connection: Connection, owner: str) -> tuple[int, int]:
    """Return an owner's stored bytes, of files, weights, answers and logs; and unfinished runs."""
    row = connection.execute(_FIND, {"of": owner}).one_or_none()
    return (0, 0) if row is None else (row.stored_bytes, row.unfinished)


def change_usage(
    connection: Connection, owner: str, *, stored: int = 0, unfinished: int = 0
) -> None:
    """Add to the counts of an owner, in the transaction that makes it so."""
    change = {"of": owner, "more_bytes": stored, "more_runs": unfinished}
    if not connection.execute(_CHANGE, change).rowcount:
        row = {"owner": owner, "stored_bytes": stored, "unfinished": unfinished}
        connection.execute(insert(usage).values(row))


def count_usage(connection: Connection) -> None:
    """Count everything anew."""
    connection.execute(delete(usage))
    owned = ((files.c.owner, files.c.size), (runs.c.owner, runs.c.bytes))
    for owner, size in (*owned, (versions.c.model_owner, versions.c.size)):
        query = select(owner.label("owner"), func.sum(size).label("size")).group_by(owner)
        for row in connection.execute(query).all():
            change_usage(connection, row.owner, stored=int(row.size or 0))
    unfinished = select(runs.c.owner, func.count()).where(runs.c.status.in_(UNFINISHED))
    for owner, number in connection.execute(unfinished.group_by(runs.c.owner)).all():
        change_usage(connection, owner, unfinished=number)
