"""Predictions and trainings: their rows, whose states only move forward."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from src.service.store.database import Place, select_page
from src.service.store.ids import new_capability, new_id
from src.service.store.schema import UNFINISHED, models, points, runs
from src.service.store.usage import change_usage
from src.service.times import now_text, seconds_between

Run = Row[Any]
# Statements of every prediction are built once: to build one costs as much as to run it.
_INSERT = insert(runs).returning(runs)
_COUNT_RUN = (
    update(models)
    .where(models.c.owner == bindparam("of"), models.c.name == bindparam("named"))
    .values(run_count=models.c.run_count + 1)
)
_FIND = select(runs).where(runs.c.id == bindparam("run"))
_FIND_OWN = _FIND.where(runs.c.owner == bindparam("of"))
_CHANGE = update(runs).where(runs.c.id == bindparam("run")).returning(runs)
_START = _CHANGE.where(runs.c.status == "starting")
_LOCK_UNFINISHED = (
    select(
        *(runs.c.owner, runs.c.created_at, runs.c.started_at, runs.c.metrics, runs.c.bytes),
        func.length(runs.c.logs).label("log_length"),
    )
    .where(runs.c.id == bindparam("run"), runs.c.status.in_(UNFINISHED))
    .with_for_update()
)


def create_run(connection: Connection, values: dict[str, Any]) -> Run:
    """Insert a run as starting; return its row."""
    owner, _, name = values["model"].partition("/")
    connection.execute(_COUNT_RUN, {"of": owner, "named": name})
    row = {
        "id": new_id(), "status": "starting", "created_at": now_text(),
        "capability": new_capability(), **values,
    }  # fmt: skip
    row["bytes"] = len(str(row["input"]))
    change_usage(connection, row["owner"], stored=row["bytes"], unfinished=1)
    return connection.execute(_INSERT, row).one()


def find_run(connection: Connection, run_id: str, owner: str | None = None) -> Run | None:
    """Return a run, of this owner where one is given."""
    if owner is None:
        return connection.execute(_FIND, {"run": run_id}).one_or_none()
    return connection.execute(_FIND_OWN, {"run": run_id, "of": owner}).one_or_none()


def list_runs(
    connection: Connection,
    owner: str,
    kind: str,
    *,
    limit: int,
    place: Place | None = None,
    created_after: str | None = None,
    created_before: str | None = None,
    source: str | None = None,
    only_jobs: bool = False,
) -> Sequence[Run]:
    """Return runs of an owner, the newest first."""
    query = select(runs).where(runs.c.owner == owner, runs.c.kind == kind)
    if created_after is not None:
        query = query.where(runs.c.created_at > created_after)
    if created_before is not None:
        query = query.where(runs.c.created_at < created_before)
    if source is not None:
        query = query.where(runs.c.source == source)
    if only_jobs:
        query = query.where(runs.c.job.is_not(None))
    order = runs.c.created_at, runs.c.id
    return select_page(connection, query, *order, limit=limit, place=place)


def unfinished_runs(connection: Connection, kind: str) -> Sequence[Run]:
    """Return the runs that wait or run, the oldest first."""
    query = select(runs).where(runs.c.kind == kind, runs.c.status.in_(UNFINISHED))
    return connection.execute(query.order_by(runs.c.created_at, runs.c.id)).all()


def count_by_state(connection: Connection, owner: str, kind: str) -> dict[str, int]:
    """Return how many runs of an owner wait (starting) and run (processing)."""
    query = select(runs.c.status, func.count().label("number")).where(
        runs.c.owner == owner, runs.c.kind == kind, runs.c.status.in_(UNFINISHED)
    )
    found = {row.status: row.number for row in connection.execute(query.group_by(runs.c.status))}
    return {state: found.get(state, 0) for state in UNFINISHED}


def start_run(connection: Connection, run_id: str) -> Run | None:
    """Move a run from starting to processing; None where it is not starting any more."""
    values = {"run": run_id, "status": "processing", "started_at": now_text()}
    return connection.execute(_START, values).one_or_none()


def save_progress(
    connection: Connection, run_id: str, logs: str, records: Sequence[tuple[int, float, Any]] = ()
) -> None:
    """Keep what a running training has logged, and its new (number, time, record)s."""
    query = update(runs).where(runs.c.id == run_id, runs.c.status.in_(UNFINISHED))
    connection.execute(query.values(logs=logs.replace("\0", "")))
    for number, created_at, record in records:
        row = {"run": run_id, "number": number, "created_at": created_at, "record": record}
        connection.execute(insert(points).values(row))


def end_run(connection: Connection, run_id: str, status: str, **values: Any) -> Run | None:
    """Give a run its final state; None where it has one already."""
    # Postgres takes no NUL in a text.
    texts = ("logs", "error")
    values |= {name: values[name].replace("\0", "") for name in texts if values.get(name)}
    run = connection.execute(_LOCK_UNFINISHED, {"run": run_id}).one_or_none()
    if run is None:
        return None
    now = now_text()
    started_at = run.started_at or now
    metrics = {**(run.metrics or {}), **values.pop("metrics", {})}
    metrics["predict_time"] = max(seconds_between(started_at, now), 0.0)
    metrics["total_time"] = max(seconds_between(run.created_at, now), 0.0)
    log_length = len(values["logs"]) if "logs" in values else run.log_length
    size = log_length + len(str(values.get("output") or ""))
    change_usage(connection, run.owner, stored=size, unfinished=-1)
    values |= {"status": status, "started_at": started_at, "completed_at": now, "metrics": metrics}
    values["bytes"] = run.bytes + size
    return connection.execute(_CHANGE, {"run": run_id, **values}).one()


def list_points(connection: Connection, run_id: str) -> Sequence[Row[Any]]:
    """Return what a training reported, in order."""
    query = select(points).where(points.c.run == run_id).order_by(points.c.number)
    return connection.execute(query).all()


def old_runs(connection: Connection, before: str) -> Sequence[str]:
    """Return the ids of predictions that ended before a time and still have their data."""
    query = select(runs.c.id).where(
        runs.c.kind == "prediction", runs.c.completed_at < before, runs.c.data_removed.is_(False)
    )
    return connection.execute(query).scalars().all()


def remove_data(connection: Connection, run_id: str) -> None:
    """Forget the input, output and logs of an ended run."""
    query = select(runs.c.owner, runs.c.bytes).where(
        runs.c.id == run_id, runs.c.status.not_in(UNFINISHED)
    )
    run = connection.execute(query.with_for_update()).one_or_none()
    if run is not None:
        change_usage(connection, run.owner, stored=-run.bytes)
        nothing = {"input": {}, "output": None, "logs": "", "data_removed": True, "bytes": 0}
        connection.execute(update(runs).where(runs.c.id == run_id).values(nothing))
