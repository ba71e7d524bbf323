"""What runs at this moment: its output and logs as they grow, and who follows them."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

from src.service.store.runs import Run

QUIET_SECONDS = 15.0
"""replicate-python gives up after 30 s of silence."""


class LiveRun:
    """A run that waits or runs in this process."""

    def __init__(self, accepted: Run) -> None:
        self.id, self.created_at = accepted.id, accepted.created_at
        self.capability = accepted.capability
        self.status = "starting"
        self.chunks: list[str] = []
        self.logs = accepted.logs
        self.metrics: dict[str, Any] = {}
        self.ended = asyncio.Event()
        self.row: Run | None = None
        """Its final row, once it has ended."""
        self._followers: set[asyncio.Event] = set()

    def start(self) -> None:
        """Note that it is processing."""
        self.status = "processing"
        self.tell()

    def push(self, text: str) -> None:
        """Add a piece of output."""
        self.chunks.append(text)
        self.tell()

    def log(self, text: str) -> None:
        """Add to the logs."""
        self.logs += text
        self.tell()

    def end(self, row: Run) -> None:
        """Note its final row, which is in the database already."""
        self.row, self.status = row, row.status
        self.ended.set()
        self.tell()

    async def wait(self, seconds: float) -> bool:
        """Wait for the end; return whether it came in time."""
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            return False
        return True

    @contextmanager
    def followed(self) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever something has changed."""
        changed = asyncio.Event()
        self._followers.add(changed)
        try:
            yield changed
        finally:
            self._followers.discard(changed)

    async def output(self, quiet_seconds: float = QUIET_SECONDS) -> AsyncGenerator[list[str]]:
        """Yield all pieces of output, as many as there are at a time, until the run has ended.

        There are none after so many seconds in which nothing has happened.
        """
        number = 0
        with self.followed() as changed:
            while True:
                changed.clear()
                has_ended = self.ended.is_set()
                if fresh := self.chunks[number:]:
                    yield fresh
                    number += len(fresh)
                if has_ended:
                    return
                try:
                    async with asyncio.timeout(quiet_seconds):
                        await changed.wait()
                except TimeoutError:
                    yield []

    def tell(self) -> None:
        """Wake those who follow the run."""
        for changed in self._followers:
            changed.set()


class LiveRuns:
    """The runs of this process that have not ended, by id."""

    def __init__(self) -> None:
        self._runs: dict[str, LiveRun] = {}

    def add(self, accepted: Run) -> LiveRun:
        """Begin to keep a run."""
        self._runs[accepted.id] = live = LiveRun(accepted)
        return live

    def get(self, run_id: str) -> LiveRun | None:
        """Return a run that has not ended."""
        return self._runs.get(run_id)

    def end(self, row: Run) -> None:
        """Tell all who follow a run that it has ended, and forget it."""
        live = self._runs.pop(row.id, None)
        if live is not None:
            live.end(row)
