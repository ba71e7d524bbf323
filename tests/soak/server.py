"""A Cog server that is hurt on purpose: what runs in its name, what it leaves."""

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import requests

from src.cli.server import ROOT, server_command, server_environment
from src.cli.server_http import http_session, plain_error
from tests.soak.web import HOST, SoakWeb

START_SECONDS = 90.0
READY_SECONDS = 10.0
_STEP = re.compile(r"^step (\d+)/", re.MULTILINE)
_CACHE = "weights-cache"
_WATCHER = "src/process_tree.py"
"""Ends a worker whose server is gone."""
_LEFTOVERS = ("training-*", "weights-*", "plan-*", f"{_CACHE}/*/.*")


@dataclass(frozen=True)
class Process:
    """A process of a server."""

    pid: int
    command: str
    rank: str | None
    """Of a rank of a training."""


class SoakServer:
    """Runs Cog's server with a mark that all its processes carry, and a place for its files."""

    def __init__(self, mode: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.mode = mode
        self.temporary = folder / f"tmp-{mode}"
        self.temporary.mkdir()
        self._log = folder / f"{mode}.log"
        self.mark = f"SOAK_MARK={secrets.token_hex(12)}"
        """In the environment of all its processes."""
        name, _, value = self.mark.partition("=")
        self._environment = {
            **environment,
            name: value,
            "TMPDIR": str(self.temporary),
            "WEIGHTS_CACHE": str(self.temporary / _CACHE),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._resting: set[int] = set()
        self.address = ""
        self.memory: list[int] = []
        """Bytes of the server and its worker when it first rested, now, and at most."""

    def start(self, **more: str) -> None:
        """Start the server and wait until it is ready; raises TimeoutError."""
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        environment = {**server_environment(port), **self._environment, **more}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                server_command(self.mode, HOST),
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.address = f"http://{HOST}:{port}"
        if not self.wait_ready(START_SECONDS):
            raise TimeoutError(f"the {self.mode} server did not start: {self.log_tail()}")
        self._resting = {process.pid for process in self.processes()}

    def log_tail(self) -> str:
        """Return the last words of the server's log."""
        return self._log.read_text(errors="replace")[-2000:]

    def wait_ready(self, seconds: float = READY_SECONDS) -> bool:
        """Tell whether the server says READY within some seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException, ValueError, KeyError):
                health = http_session().get(f"{self.address}/health-check", timeout=5).json()
                if health["status"] == "READY":
                    return True
            time.sleep(0.05)
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server's own process."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait_end(self, seconds: float) -> bool:
        """Tell whether the server's own process ends within some seconds; it is to be started."""
        assert self._process is not None
        self._resting = set()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            return True
        return False

    def kill_all(self) -> None:
        """End whatever carries the mark."""
        for _ in range(20):
            for process in (found := self.processes()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            if not found:
                break
            time.sleep(0.1)
        if self._process is not None:
            self._process.wait()

    def processes(self) -> list[Process]:
        """Return every process that carries the mark."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes()
                if self.mark.encode() not in environment:
                    continue
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            is_worker = "src.training.worker" in command and "launcher" not in command
            rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", environment) if is_worker else None
            found.append(Process(int(folder.name), command, rank and rank[1].decode()))
        return found

    def busy(self) -> list[Process]:
        """Return the processes that a server at rest does not have."""
        return [
            process
            for process in self.processes()
            if process.pid not in self._resting
            # It starts with the first training, and stays for as long as there is a server.
            and not (self._resting and _WATCHER in process.command)
        ]

    def kill_worker(self) -> None:
        """Kill the process in which the model's own code runs; Cog's own stays."""
        assert self._process is not None
        for process in self.processes():
            if "_run_worker" in process.command:
                os.kill(process.pid, signal.SIGKILL)
        self._resting = {self._process.pid}

    def wait_alone(self, deadline: float) -> int:
        """Return how many processes are left over at a time."""
        while (left := self.busy()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return len(left)

    def leftovers(self) -> list[str]:
        """Return the names of the temporary folders of trainings and downloads."""
        found = [path.name for pattern in _LEFTOVERS for path in self.temporary.glob(pattern)]
        return [name for name in found if name != _CACHE]

    def note_memory(self) -> None:
        """Measure the processes that rest."""
        now = 0
        for pid in self._resting:
            with contextlib.suppress(OSError):
                now += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        now *= os.sysconf("SC_PAGE_SIZE")
        if now:
            first, _, most = self.memory or [now, now, now]
            self.memory = [first, now, max(most, now)]


class SoakRequest:
    """A training or prediction in the background, followed through its webhooks."""

    def __init__(self, server: SoakServer, web: SoakWeb, inputs: Mapping[str, Any]) -> None:
        name = secrets.token_hex(6)
        kind = "trainings" if server.mode == "train" else "predictions"
        self._url = f"{server.address}/{kind}/{name}"
        hook, self._box = web.open_box(name)
        request = {"input": inputs, "webhook": hook, "webhook_events_filter": ["logs", "completed"]}
        self._end: dict[str, Any] | None = None
        self.step = 0
        """The last step that the log tells of."""
        headers = {"Prefer": "respond-async"}
        answer = http_session().put(self._url, json=request, headers=headers, timeout=60)
        deadline = time.monotonic() + 60
        # The slots are few, and free only a moment after an answer.
        while answer.status_code == 409 and time.monotonic() < deadline:
            time.sleep(0.1)
            answer = http_session().put(self._url, json=request, headers=headers, timeout=60)
        if answer.status_code >= 400:
            self._end = {"status": "failed", "error": answer.text[:2000]}

    def wait(self, seconds: float) -> dict[str, Any] | None:
        """Return how the request ended, or nothing if it has not after some seconds."""
        deadline = time.monotonic() + seconds
        while self._end is None:
            try:
                event = self._box.get(timeout=max(0.01, deadline - time.monotonic()))
            except Empty:
                break
            else:
                steps = _STEP.findall(event.get("logs") or "")
                self.step = max([self.step, *map(int, steps)])
                if event.get("status") in ("succeeded", "failed", "canceled"):
                    self._end = event
        return self._end

    def cancel(self) -> None:
        """Ask the server to end it."""
        with contextlib.suppress(requests.RequestException):
            http_session().post(f"{self._url}/cancel", timeout=30)


def text_of(end: Mapping[str, Any]) -> str:
    """Return the whole answer of a prediction."""
    output = end.get("output")
    return output if isinstance(output, str) else "".join(output or [])


def error_of(end: Mapping[str, Any]) -> str:
    """Return the error of a request without the names of classes."""
    return plain_error(end.get("error") or "")
