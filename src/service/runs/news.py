"""Tells a run's webhook of new output and logs while the run goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy import Connection

from src.service.runs.live import LiveRun
from src.service.runs.notify import notify, wants
from src.service.store.database import Database
from src.service.store.runs import Run, find_run

NEWS_SECONDS = 0.5
"""The shortest time between two messages of one event."""


@asynccontextmanager
async def telling_news(
    database: Database, run: Run, live: LiveRun, *, seconds: float = NEWS_SECONDS
) -> AsyncIterator[None]:
    """Context in which a run's webhook is told of its output and logs as they grow.

    Output is told of at least once: leave the context before the run's end is written.
    """
    events = [event for event in ("output", "logs") if wants(run, event)]
    if not events:
        yield
        return
    news = _News(database, run, live, events)
    telling = asyncio.create_task(news.tell_all(seconds))
    try:
        yield
    finally:
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling
    if not news.has_told_output:
        await news.tell()


class _News:
    def __init__(self, database: Database, run: Run, live: LiveRun, events: list[str]) -> None:
        self._database, self._run, self._live = database, run, live
        self._told = {event: self._size_of(event) for event in events}
        self.has_told_output = "output" not in events

    async def tell_all(self, seconds: float) -> None:
        """Tell of all changes, until canceled."""
        with self._live.followed() as changed:
            while True:
                changed.clear()
                if await self.tell():
                    await asyncio.sleep(seconds)
                await changed.wait()

    async def tell(self) -> bool:
        """Tell of what has grown; return whether something has."""
        if self._live.status == "starting":
            return False  # nothing comes before the start
        fresh = [event for event, size in self._told.items() if size != self._size_of(event)]
        if fresh:
            self._told |= {event: self._size_of(event) for event in fresh}
            shown: dict[str, Any] = {"status": self._live.status, "logs": self._live.logs}
            if self._live.chunks:
                shown["output"] = list(self._live.chunks)
            await self._database.write(_notify, self._run.id, fresh, shown)
            self.has_told_output |= "output" in fresh
        return bool(fresh)

    def _size_of(self, event: str) -> int:
        return len(self._live.chunks if event == "output" else self._live.logs)


def _notify(connection: Connection, run_id: str, events: list[str], shown: dict[str, Any]) -> None:
    run = find_run(connection, run_id)
    if run is not None and run.completed_at is None:  # nothing comes behind the end
        for event in events:
            notify(connection, run, event, **shown)
