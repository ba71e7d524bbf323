"""Cog's own HTTP server on this checkout, without Docker.

`python -m src.cli.server predict|train [--port N] [--host H] [--concurrency N]`
"""

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import requests

from src.cli.schema import CONCURRENT_PREDICTOR, PREDICTOR, write_schema
from src.cli.server_http import HOST, RequestError, http_session, plain_error
from src.process_tree import end_together

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def running_server(mode: str, *, verbose: bool = False) -> Iterator[str]:
    """Run Cog's server on a free port for as long as it is needed; yield its address."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    write_schema(ROOT)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            server_command(mode, HOST),
            cwd=ROOT,
            env=server_environment(port),
            stdin=subprocess.DEVNULL,
            stdout=None if verbose else log,
            stderr=None if verbose else log,
            start_new_session=True,
        )
        watcher = end_together(os.getpid(), process.pid)
        try:
            address = f"http://{HOST}:{port}"
            _wait_until_ready(process, address, log)
            yield address
        finally:
            _stop(process)
            if watcher is not None:
                watcher.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    while process.poll() is None:
        try:
            health: dict[str, Any] = http_session().get(f"{address}/health-check", timeout=5).json()
        except requests.RequestException:
            health = {"status": "STARTING"}
        if health["status"] in ("READY", "BUSY"):
            return
        if health["status"] == "SETUP_FAILED":
            logs = (health.get("setup") or {}).get("logs", "").strip().splitlines()
            last = logs[-1] if logs else "the model could not be set up"
            raise RequestError(plain_error(re.sub(r"^.*?(?=UserError: )", "", last)))
        time.sleep(0.1)
    log.seek(0)
    raise RequestError(f"the server did not start: {log.read().decode(errors='replace')[-500:]}")


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


def server_environment(port: int) -> dict[str, str]:
    """Return the environment that `cog build` puts into an image, for this checkout."""
    environment = {
        "COG_PREDICT_TYPE_STUB": PREDICTOR,
        "COG_TRAIN_TYPE_STUB": "train.py:train",
        **os.environ,
        "PORT": str(port),
    }
    for name, separator, first in (
        ("PATH", os.pathsep, str(Path(sys.executable).parent)),  # the worker starts as `python`
        ("PYTHONPATH", os.pathsep, str(ROOT)),
        # Cog fetches local files and sends its webhooks over loopback, never through a proxy.
        ("no_proxy", ",", HOST),
        ("NO_PROXY", ",", HOST),
    ):
        environment[name] = separator.join(filter(None, [first, environment.get(name)]))
    return environment


def server_command(mode: str, host: str) -> list[str]:
    """Return the command of Cog's server."""
    return [sys.executable, "-m", "cog.server.http", "--host", host, "--x-mode", mode]


def main() -> None:
    """Become Cog's server, so that signals go straight to it."""
    parser = argparse.ArgumentParser(prog="scripts/serve", description="Serve this model over HTTP")
    parser.add_argument("mode", choices=["predict", "train"])
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "5000")))
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--concurrency", type=int, help="answer so many requests at once")
    arguments = parser.parse_args()
    if arguments.concurrency is not None:
        os.environ["COG_PREDICT_TYPE_STUB"] = CONCURRENT_PREDICTOR
        os.environ["COG_MAX_CONCURRENCY"] = str(arguments.concurrency)
    write_schema(ROOT)
    os.chdir(ROOT)
    command = server_command(arguments.mode, arguments.host)
    os.execve(command[0], command, server_environment(arguments.port))


if __name__ == "__main__":
    main()
