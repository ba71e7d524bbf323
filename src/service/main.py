"""The service on one machine.

`python -m src.service.main [--host H] [--port N]`
`python -m src.service.main token add NAME | list | remove NAME`
"""

import argparse
import os
import sys
from pathlib import Path
from types import FrameType

import uvicorn
from filelock import FileLock, Timeout

from src.errors import UserError
from src.service.app import make_app
from src.service.http.access_log import log_as_json
from src.service.listen import open_sockets
from src.service.service import Service
from src.service.settings import ServiceSettings, is_loopback, read_service_settings
from src.service.store.database import Database
from src.service.store.tokens import FIRST_OWNER, add_token, list_tokens, remove_tokens

DRAIN_SECONDS = 30


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    options = _parse(arguments)
    try:
        settings = read_service_settings(os.environ)
        _make_folder(settings.data_dir)
        database = Database(settings.database_url)
        if options.command == "token":
            _change_tokens(database, options)
            return 0
        return _serve(settings, database, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _serve(settings: ServiceSettings, database: Database, options: argparse.Namespace) -> int:
    lock = FileLock(settings.data_dir / "service.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"DATA_DIR: another service runs in {settings.data_dir}") from None
    sockets = open_sockets(options.host, options.port)
    service = Service(settings, database)
    if not database.read_now(list_tokens):
        token = database.write_now(add_token, FIRST_OWNER)
        print(f"the token of {FIRST_OWNER}, shown only now: {token}", flush=True)
    address = settings.public_url or f"http://{options.host}:{options.port}"
    print(f"the page: {address}, Replicate's API: {address}/v1, OpenAI's: {address}/openai/v1")
    if not is_loopback(options.host):
        print("every machine that reaches this address may ask; each request needs a token")
    sys.stdout.flush()
    log_as_json()
    config = uvicorn.Config(
        make_app(service),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config, service)
    server.run(sockets=sockets)
    return 0 if server.started and not service.has_failed else 1


class _Server(uvicorn.Server):
    """Tells the service at once that it is to end, before its connections have."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        service.on_failure = self._end

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        self._service.begin_stop()
        super().handle_exit(sig, frame)

    def _end(self) -> None:
        self._service.begin_stop()
        self.should_exit = True


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(
            f"DATA_DIR: expected a folder that can be made, found {folder}: {error.strerror}"
        ) from None


def _change_tokens(database: Database, options: argparse.Namespace) -> None:
    match options.action:
        case "add":
            print(database.write_now(add_token, options.name))
        case "list":
            for row in database.read_now(list_tokens):
                print(f"{row.shown}... {row.owner} {row.created_at}")
        case "remove":
            if not database.write_now(remove_tokens, options.name):
                raise UserError(f"token remove: there is no token of {options.name!r}")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/service", description="Serve over HTTP")
    parser.add_argument("--host", default=os.environ.get("HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "8000")))
    commands = parser.add_subparsers(dest="command")
    token = commands.add_parser("token", help="who may use the service")
    actions = token.add_subparsers(dest="action", required=True)
    for action, text in (("add", "make a token"), ("remove", "remove an owner's tokens")):
        actions.add_parser(action, help=text).add_argument("name")
    actions.add_parser("list", help="list the tokens")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
