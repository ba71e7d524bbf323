"""Workers: processes that speak JSON lines, and end with their stdin."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from src.service.settings import ServiceSettings


class Worker:
    """A process of its own session."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def returncode(self) -> int | None:
        """Return how it ended."""
        return self._process.returncode

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            yield json.loads(line)
        await self._process.wait()

    async def stop(self, seconds: float) -> None:
        """Close stdin, then end what is left."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


class Executor:
    """Starts workers on this machine."""

    async def start(self, kind: str, environment: dict[str, str]) -> Worker:
        """Start a worker."""
        command = [sys.executable, "-m", f"src.jobs.{kind}"]
        pipe = asyncio.subprocess.PIPE
        return Worker(
            await asyncio.create_subprocess_exec(
                *command,
                stdin=pipe,
                stdout=pipe,
                env=environment,
                start_new_session=True,
                limit=1 << 28,
            )
        )


def make_executor(settings: ServiceSettings) -> Executor:
    """Return what starts workers."""
    return Executor()
