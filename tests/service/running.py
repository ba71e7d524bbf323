"""A service that runs as its users start it."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parents[2]
SERVICE = [sys.executable, "-m", "src.service.main"]
START_SECONDS = 60


def add_token(name: str, environment: dict[str, str]) -> str:
    """Return a new token of an owner."""
    command = [*SERVICE, "token", "add", name]
    return subprocess.check_output(command, cwd=ROOT, env=environment, text=True).strip()


@contextmanager
def running_service(environment: dict[str, str], log: Path) -> Iterator[str]:
    """Run a service with its engine ready; yield its address."""
    with running(environment, log) as (api, process):
        wait_for(process, log, lambda: _engine_of(api) == "ready")
        yield api


@contextmanager
def running(
    environment: dict[str, str], log: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run a service that takes requests; yield its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*SERVICE, "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(process, log, lambda: _engine_of(api) is not None)
        yield api, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_for(process: "subprocess.Popen[bytes]", log: Path, is_there: Callable[[], object]) -> None:
    """Return as soon as `is_there` is true of a service that runs."""
    deadline = time.monotonic() + START_SECONDS
    while not is_there():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def _engine_of(api: str) -> object:
    """Return how the engine is; None where no service answers."""
    try:
        return requests.get(f"{api}/health", timeout=5).json()["engine"]
    except requests.ConnectionError:
        return None
