"""The end of a run: its final row, its webhook and its followers, in this order."""

from collections import Counter
from typing import Any

from sqlalchemy import Connection

from src.service.runs.live import LiveRuns
from src.service.runs.notify import notify
from src.service.store.database import Database
from src.service.store.models import add_version
from src.service.store.runs import Run, end_run, find_run, start_run


class RunEnds:
    """Moves runs forward: to processing, and to their final state."""

    def __init__(self, database: Database, live_runs: LiveRuns) -> None:
        self._database, self._live_runs = database, live_runs
        self.counts: Counter[tuple[str, str]] = Counter()
        """Runs that have ended in this process, by kind and state."""

    async def start(self, run_id: str) -> bool:
        """Move a run to processing; False where it has ended meanwhile."""
        row = await self._database.write(_start, run_id)
        live = self._live_runs.get(run_id)
        if row is None or live is None:
            return False
        live.start()
        return True

    async def end(self, run_id: str, status: str, **values: Any) -> Run:
        """Give a run its final state, unless it has one; return its row.

        `new_version` is (owner, name, version id, values) of the version that a training made.
        """
        live = self._live_runs.get(run_id)
        if live is not None:
            values.setdefault("logs", live.logs)
            values["metrics"] = {**live.metrics, **values.get("metrics", {})}
            if live.chunks or status == "succeeded":  # clients join even the output of no text
                values.setdefault("output", list(live.chunks))
        row = await self._database.write(_end, run_id, status, values)
        if live is not None and not live.ended.is_set():
            self.counts[row.kind, row.status] += 1
        self._live_runs.end(row)
        return row


def _start(connection: Connection, run_id: str) -> Run | None:
    row = start_run(connection, run_id)
    if row is not None:
        notify(connection, row, "start")
    return row


def _end(connection: Connection, run_id: str, status: str, values: dict[str, Any]) -> Run:
    new_version = values.pop("new_version", None)
    row = end_run(connection, run_id, status, **values)
    if row is None:
        row = find_run(connection, run_id)
        assert row is not None
        return row
    if new_version is not None:
        owner, name, version_id, of_version = new_version
        add_version(connection, owner, name, version_id, **of_version)
    notify(connection, row, "completed")
    return row
