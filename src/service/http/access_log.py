"""One line of JSON for each request: what was asked, by whom, how it ended; and no secrets."""

import json
import logging
import re
import secrets
import time
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("service.access")
_SECRET = re.compile(r"[0-9a-f]{48}")
"""A capability in a path: who knows it may read what it names."""
_KNOWN = set(vars(logging.makeLogRecord({})))


class AccessLog:
    """Gives each request an id, which its answer and its line in the log carry."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and log it when the answer is complete."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status, request_id = time.monotonic(), 0, secrets.token_hex(8)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        finally:
            told = {
                "request_id": request_id,
                "method": scope["method"],
                "path": _SECRET.sub("...", scope["path"]),
                "status": status,
                "seconds": round(time.monotonic() - started, 4),
                "owner": scope.get("state", {}).get("owner"),
            }
            log.info("request", extra=told)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _KNOWN}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json() -> None:
    """Have everything that is logged written to stderr, a line of JSON each."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
