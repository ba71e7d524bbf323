"""What runs at this moment: its output and logs as they grow, and who follows them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from src.service.store.runs import Run


class LiveRun:
    """A run that waits or runs in this process."""

    def __init__(self, run_id: str, owner: str) -> None:
        self.id, self.owner = run_id, owner
        self.status = "starting"
        self.chunks: list[str] = []
        self.logs = ""
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

    async def output(self) -> AsyncIterator[str]:
        """Yield each piece of output from the first one on, until the run has ended."""
        number = 0
        with self.followed() as changed:
            while True:
                changed.clear()
                has_ended = self.ended.is_set()
                while number < len(self.chunks):
                    yield self.chunks[number]
                    number += 1
                if has_ended:
                    return
                await changed.wait()

    def tell(self) -> None:
        """Wake those who follow the run."""
        for changed in self._followers:
            changed.set()


class LiveRuns:
    """The runs of this process that have not ended, by id."""

    def __init__(self) -> None:
        self._runs: dict[str, LiveRun] = {}

    def add(self, run_id: str, owner: str) -> LiveRun:
        """Begin to keep a run."""
        self._runs[run_id] = live = LiveRun(run_id, owner)
        return live

    def get(self, run_id: str) -> LiveRun | None:
        """Return a run that has not ended."""
        return self._runs.get(run_id)

    def end(self, row: Run) -> None:
        """Tell all who follow a run that it has ended, and forget it."""
        live = self._runs.pop(row.id, None)
        if live is not None:
            live.end(row)
