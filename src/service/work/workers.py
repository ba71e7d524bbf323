"""Where engines and trainings run: as processes of this checkout, or of an image."""

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from src.errors import UserError
from src.service.settings import ServiceSettings
from src.service.work.job_environment import job_environment

ROOT = Path(__file__).resolve().parents[3]
READ_BYTES = 1 << 18
NVIDIA_DEVICE = Path("/dev/nvidiactl")
PATHS = ("BASE_MODEL", "BASE_MODEL_URL", "BASE_MODEL_CACHE", "CHECKPOINT_DIR", "WEIGHTS_DIR")
"""Variables that may name a folder of this machine."""
Kind = Literal["engine", "training", "preview"]
Message = dict[str, Any]


class Worker(Protocol):
    """A job that runs somewhere; iterating over it gives what it says until it is gone."""

    @property
    def returncode(self) -> int | None:
        """The exit code once it has ended, below 0 for a signal."""
        ...

    async def send(self, message: Message) -> None:
        """Send it a message; raises ConnectionError where it is gone."""
        ...

    def __aiter__(self) -> AsyncIterator[Message]: ...

    async def stop(self, seconds: float) -> None:
        """End its stdin, and after so many seconds its processes; returns when they are gone."""
        ...


class Executor(Protocol):
    """Starts jobs."""

    async def start(self, kind: Kind, env: Mapping[str, str]) -> Worker:
        """Start `src.jobs.KIND` with an environment; raises OSError where that fails."""
        ...


def make_executor(settings: ServiceSettings) -> Executor:
    """Return what starts jobs where the operator wants them.

    Raises UserError for Ray where it is not installed, or is to run an image.
    """
    if settings.executor == "ray":
        if settings.cog_image is not None:
            raise UserError(
                "COG_IMAGE: expected none beside EXECUTOR=ray, which runs this checkout"
            )
        try:
            from src.service.work.cluster.ray_executor import RayExecutor
        except ImportError:
            raise UserError(
                "EXECUTOR: ray is not installed: pip install -r requirements-ray.txt"
            ) from None
        return RayExecutor()
    if settings.cog_image is not None:
        return DockerExecutor(settings.cog_image, settings.data_dir)
    return LocalExecutor()


class LocalExecutor:
    """Starts jobs as processes of this checkout."""

    async def start(self, kind: Kind, env: Mapping[str, str]) -> "ProcessWorker":
        """Start `src.jobs.KIND`, with no more than the environment given."""
        return await _start([sys.executable, "-m", f"src.jobs.{kind}"], env)


class DockerExecutor:
    """Starts jobs in containers of a built image, which see the service's folder of data."""

    def __init__(self, image: str, data_dir: Path) -> None:
        self._image, self._data_dir = image, data_dir

    async def start(self, kind: Kind, env: Mapping[str, str]) -> "ProcessWorker":
        """Start `src.jobs.KIND`; the folders that the environment names are mounted."""
        name = f"cog-finetune-{kind}-{secrets.token_hex(6)}"
        # A container's own folder would be fetched into anew each time.
        cache = {"BASE_MODEL_CACHE": str(self._data_dir / "base-models")}
        inside = {**cache, **job_environment(env), "HOME": "/tmp", "USER": "cog"}
        named = {inside[path] for path in PATHS if Path(inside.get(path, "")).is_absolute()}
        folders = sorted({str(self._data_dir), *(path for path in named if Path(path).exists())})
        command = [
            *("docker", "run", "-i", "--rm", "--name", name),
            # What it writes belongs to whom the service runs as.
            *("--user", f"{os.getuid()}:{os.getgid()}", "--shm-size", "1g"),
            *(["--gpus", "all"] if NVIDIA_DEVICE.exists() else []),
            *(text for folder in folders for text in ("-v", f"{folder}:{folder}")),
            # The values, among which are secrets, are in no list of processes.
            *(text for name in inside for text in ("-e", name)),
            *(self._image, "python", "-m", f"src.jobs.{kind}"),
        ]
        return await _start(command, {**os.environ, **inside}, kill=["docker", "kill", name])


async def _start(
    command: Sequence[str], env: Mapping[str, str], *, kill: Sequence[str] = ()
) -> "ProcessWorker":
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    return ProcessWorker(process, kill)


class ProcessWorker:
    """A job as a process of this machine, in a session of its own."""

    def __init__(self, process: asyncio.subprocess.Process, kill: Sequence[str] = ()) -> None:
        """`kill` is a command that ends what the process has started elsewhere."""
        self._process, self._kill = process, kill

    @property
    def returncode(self) -> int | None:
        """The exit code once it has ended, below 0 for a signal."""
        return self._process.returncode

    @property
    def pid(self) -> int:
        """The process, which is the leader of its session and its group."""
        return self._process.pid

    async def send(self, message: Message) -> None:
        """Send it a message; raises ConnectionError where it is gone."""
        assert self._process.stdin is not None
        if self.returncode is not None or self._process.stdin.is_closing():
            raise ConnectionResetError("the job is gone")
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        await self._process.stdin.drain()

    async def __aiter__(self) -> AsyncIterator[Message]:
        assert self._process.stdout is not None
        line: list[bytes] = []
        while piece := await self._process.stdout.read(READ_BYTES):
            end, *beginnings = piece.split(b"\n")
            line.append(end)
            for beginning in beginnings:
                yield json.loads(b"".join(line))
                line = [beginning]
        await self._process.wait()

    async def stop(self, seconds: float) -> None:
        """End its stdin, and after so many seconds its processes; returns when they are gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._process.wait()
        finally:
            if self._process.returncode is None and self._kill:
                devnull = asyncio.subprocess.DEVNULL
                killer = await asyncio.create_subprocess_exec(*self._kill, stdout=devnull)
                await killer.wait()
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
