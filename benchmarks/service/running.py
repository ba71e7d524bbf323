"""A service that is measured, and killed: its processes, its owners and their clients."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from src.cli.server import ROOT
from src.service.settings import read_service_settings
from src.service.store.database import Database
from src.service.store.tokens import add_token

HOST = "127.0.0.1"
READY_SECONDS = 60.0
STOP_SECONDS = 60.0
NO_LIMITS = {
    "CREATES_PER_MINUTE": "10000000",
    "REQUESTS_PER_MINUTE": "10000000",
    "UNFINISHED_LIMIT": "1000000",
}
_MARK = "SERVICE_MARK"


class RunningService:
    """A service in a folder, always at the same address; it is started and killed any number of
    times."""

    def __init__(
        self, folder: Path, base_model: str, owners: Sequence[str], **environment: str
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._environment = {
            **os.environ,
            **NO_LIMITS,
            "ALLOW_PRIVATE_URLS": "1",
            "BASE_MODEL": base_model,
            "DATA_DIR": str(folder / "data"),
            "TOKENIZERS_PARALLELISM": "false",
            **environment,
        }
        (folder / "data").mkdir(exist_ok=True)
        self.database_url = read_service_settings(self._environment).database_url
        database = Database(self.database_url)
        self.tokens = {owner: database.write_now(add_token, owner) for owner in owners}
        database.close()
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self._port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.mark = ""
        """What the environment of every process holds that this start has led to."""

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The service's own process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Start it; return the seconds until it takes requests. Raises TimeoutError."""
        started, self.mark = time.monotonic(), secrets.token_hex(12)
        command = [sys.executable, "-m", "src.service.main", "--port", str(self._port)]
        with (self.folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self._environment, _MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while time.monotonic() < started + READY_SECONDS and self._process.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.address}/health", timeout=5).is_success:
                    return time.monotonic() - started
            time.sleep(0.02)
        raise TimeoutError(f"the service did not start: {self.log_tail()}")

    def kill(self) -> None:
        """Kill the service's own process, and nothing else."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ask it to end, as an operator does; return its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_SECONDS)

    def end(self) -> None:
        """End it with everything that it has started."""
        if self._process is not None:
            self.kill()
            for pid in marked(self.mark):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def client(self, owner: str) -> httpx.Client:
        """Return a client with an owner's token."""
        return httpx.Client(base_url=self.address, headers=self._headers(owner), timeout=120)

    def async_client(self, owner: str, *, connections: int = 50) -> httpx.AsyncClient:
        """Return an asynchronous client with an owner's token."""
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx.AsyncClient(
            base_url=self.address, headers=self._headers(owner), timeout=600, limits=limits
        )

    def cpu_seconds(self) -> float:
        """Return what the service's own process has used of the processors."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log_tail(self) -> str:
        """Return the last words of the service's log."""
        return (self.folder / "service.log").read_text(errors="replace")[-3000:]

    def _headers(self, owner: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[owner]}"}


def marked(mark: str) -> list[int]:
    """Return the processes that carry a start's mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
