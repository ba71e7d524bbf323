"""Cog's server as a process that runs for as long as it is needed."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from src.cli.schema import write_schema
from src.cli.server import server_command, server_environment
from src.cli.server_http import RequestError, http_session, plain_error

HOST = "127.0.0.1"


@contextlib.contextmanager
def running_server(mode: str, root: Path, *, verbose: bool) -> Iterator[str]:
    """Run Cog's server on a free port for as long as it is needed; yield its address."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    log_dir = Path(tempfile.mkdtemp(prefix="serve-"))
    log_path = log_dir / "log"
    with log_path.open("wb") as log:
        write_schema(root)
        process = subprocess.Popen(
            server_command(mode, HOST),
            cwd=root,
            env=server_environment(root, port),
            stdin=subprocess.DEVNULL,
            stdout=None if verbose else log,
            stderr=None if verbose else log,
            start_new_session=True,
        )
    address = f"http://{HOST}:{port}"
    try:
        _wait_until_ready(process, address, log_path)
        yield address
    finally:
        _stop(process)
        shutil.rmtree(log_dir, ignore_errors=True)


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log_path: Path) -> None:
    while process.poll() is None:
        try:
            health: dict[str, Any] = http_session().get(f"{address}/health-check", timeout=5).json()
        except requests.RequestException:
            health = {"status": "STARTING"}
        if health["status"] in ("READY", "BUSY"):
            return
        if health["status"] == "SETUP_FAILED":
            logs = (health.get("setup") or {}).get("logs", "").strip().splitlines()
            raise RequestError(_setup_error(logs))
        time.sleep(0.1)
    raise RequestError(f"the server did not start: {log_path.read_text()[-500:]}")


def _setup_error(logs: list[str]) -> str:
    last = next((line for line in reversed(logs) if line.strip()), "the model could not be set up")
    return plain_error(re.sub(r"^.*?(?=UserError: )", "", last))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started."""
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
