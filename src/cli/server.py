"""Cog's own HTTP server on this checkout, without Docker.

`python -m src.cli.server predict|train [--port N] [--host H] [--concurrency N]`
"""

import argparse
import os
import sys
from pathlib import Path

from src.cli.schema import CONCURRENT_PREDICTOR, PREDICTOR, write_schema

ROOT = Path(__file__).resolve().parents[2]


def server_environment(root: Path, port: int) -> dict[str, str]:
    """Return the environment that `cog build` puts into an image, for this checkout."""
    environment = dict(os.environ)
    environment.setdefault("COG_PREDICT_TYPE_STUB", PREDICTOR)
    environment.setdefault("COG_TRAIN_TYPE_STUB", "train.py:train")
    environment["PORT"] = str(port)
    # Cog's server starts its worker as `python`.
    bin_dir = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([bin_dir, environment.get("PATH", "")])
    # Cog fetches local files and sends its webhooks over loopback, never through a proxy.
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(filter(None, ["127.0.0.1", environment.get(name)]))
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(root), environment.get("PYTHONPATH")])
    )
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
    os.execve(command[0], command, server_environment(ROOT, arguments.port))


if __name__ == "__main__":
    main()
