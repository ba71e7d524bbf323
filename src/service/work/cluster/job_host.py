"""A job on another machine: what holds its pipes there, and gets and gives its files."""

import asyncio
import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from src.files.scratch import remove_abandoned, scratch_folder
from src.service.work.workers import Kind, LocalExecutor, Message

PREFIX = "job-"
WEIGHTS = "weights"
"""The folder below which an engine finds the weights that requests name."""


class JobHost:
    """Runs one job where it is made; its caller, anywhere, gets what the job says in batches.

    The job has a session of its own, so that nothing but the end of its stdin has to reach it: it
    ends with the process that this runs in, however that ends.
    """

    def __init__(self) -> None:
        remove_abandoned(PREFIX)
        self._cleanup = ExitStack()
        self._folder = self._cleanup.enter_context(scratch_folder(PREFIX))
        self._said: list[Message] = []
        self._has_news, self._has_ended = asyncio.Event(), False

    async def free_address(self) -> str:
        """Return host:port of this machine where others can meet."""
        name = socket.gethostbyname(socket.gethostname())
        with socket.create_server(("", 0)) as server:
            return f"{name}:{server.getsockname()[1]}"

    async def start(self, kind: Kind, variables: dict[str, str]) -> None:
        """Start the job with these variables beside those of this machine."""
        environ = {**os.environ, **variables, "WEIGHTS_DIR": str(self._folder / WEIGHTS)}
        self._worker = await LocalExecutor().start(kind, environ)
        self._reading = asyncio.create_task(self._read())

    async def send(self, message: Message) -> None:
        """Send the job a message; nothing where it has ended, which `receive` tells."""
        with suppress(ConnectionError):
            await self._worker.send(message)

    async def receive(self) -> list[Message]:
        """Return what the job has said since the last call, once there is something.

        Nothing means that it has ended.
        """
        await self._has_news.wait()
        said, self._said = self._said, []
        if not self._has_ended:
            self._has_news.clear()
        return said

    async def write(self, name: str, start: int, piece: bytes) -> None:
        """Write a piece of a file for the job; the one at 0 begins it anew."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.write(piece)

    async def read(self, name: str, start: int, size: int) -> bytes:
        """Return a piece of a file that the job has written; empty behind its end."""
        with self._path(name).open("rb") as file:
            file.seek(start)
            return file.read(size)

    async def path_of(self, name: str) -> str:
        """Return where a file of the job lies."""
        return str(self._path(name))

    async def stop(self, seconds: float) -> int | None:
        """End the job and return its exit code."""
        await self._worker.stop(seconds)
        self._cleanup.close()
        return self._worker.returncode

    async def returncode(self) -> int | None:
        """Return the exit code of a job that has ended."""
        return self._worker.returncode

    def _path(self, name: str) -> Path:
        return self._folder / name

    async def _read(self) -> None:
        try:
            async for message in self._worker:
                self._said.append(message)
                self._has_news.set()
        finally:
            self._has_ended = True
            self._has_news.set()
