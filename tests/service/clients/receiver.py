"""A server beside the clients: takes webhooks, gives them out again, and breaks connections."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests

DRIP_BYTES = 4096


class Receiver(BaseHTTPRequestHandler):
    """Keeps the webhooks of each key.

    POST /hook/KEY       takes one; with ?fail=N it refuses the first N, and keeps them too
    GET  /hook/KEY       gives them as JSON: [{"headers", "body"}]
    GET  /slow/SECONDS   gives some bytes a second
    POST /broken/KEY/... passes the request to the service, and breaks the connection
    """

    protocol_version = "HTTP/1.1"
    api: str
    """Address of the service."""
    came: dict[str, list[dict[str, Any]]]

    def do_GET(self) -> None:
        if self.path.startswith("/slow/"):
            self._drip(int(self.path.removeprefix("/slow/")))
            return
        found = self.came.get(self.path.removeprefix("/hook/"))
        is_hook = self.path.startswith("/hook/")
        self._answer(200 if is_hook else 404, json.dumps(found or []).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urlsplit(self.path)
        _, kind, key, *rest = address.path.split("/")
        if kind == "broken":
            headers = {name: self.headers[name] for name in ("Authorization", "Content-Type")}
            requests.post(f"{self.api}/{'/'.join(rest)}", body, headers=headers, timeout=30)
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.came[key].append({"headers": headers, "body": body.decode()})
        num_refused = int(parse_qs(address.query).get("fail", ["0"])[0])
        self._answer(500 if len(self.came[key]) <= num_refused else 200, b"")

    def _drip(self, seconds: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(seconds * DRIP_BYTES))
        self.end_headers()
        for _ in range(seconds):
            self.wfile.write(bytes(DRIP_BYTES))
            time.sleep(1)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def running_receiver(api: str) -> Iterator[str]:
    """Run a receiver beside a service, and give its address."""
    handler = type("Handler", (Receiver,), {"api": api, "came": defaultdict(list)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
