"""The web that a soak's servers see: good, slow and broken files, and their webhooks."""

import gzip
import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any

HOST = "127.0.0.1"
DRIP_SECONDS = 4.0
BAD_PATHS = ("drip", "short", "html", "missing", "broken", "loop", "silent", "endless", "bomb")
"""What is asked for below these names never comes as a whole file."""
BOMB = gzip.compress(bytes(64 << 20), 1)


class SoakWeb:
    """Serves files by name, as `/good/NAME`, `/slow/NAME`, or in one of the ways of `BAD_PATHS`."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self._boxes: dict[str, Queue[dict[str, Any]]] = {}
        self._server = ThreadingHTTPServer((HOST, 0), _handler(self.files, self._deliver))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"http://{HOST}:{self._server.server_port}"

    def open_box(self, name: str) -> "tuple[str, Queue[dict[str, Any]]]":
        """Return the address of a webhook and where its events arrive."""
        self._boxes[name] = Queue()
        return f"{self.address}/hook/{name}", self._boxes[name]

    def _deliver(self, path: str, event: dict[str, Any]) -> None:
        box = self._boxes.get(path.rpartition("/")[2])
        if box is not None:
            box.put(event)


def _handler(
    files: Mapping[str, bytes], deliver: Callable[[str, dict[str, Any]], None]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, way, name = self.path.split("/", 2)
            try:
                self._answer(way, files.get(name, b""))
            except OSError:  # the other side has had enough
                return

        def _answer(self, way: str, content: bytes) -> None:
            match way:
                case "good":
                    self._head(200, len(content))
                    self.wfile.write(content)
                case "slow":
                    self._head(200, len(content))
                    self._drip(content, max(1, len(content) // 20), seconds=2.0)
                case "drip":
                    self._head(200, len(content))
                    self._drip(content[:20], 1, seconds=DRIP_SECONDS)
                case "short":
                    self._head(200, len(content))
                    self.wfile.write(content[: len(content) // 2])
                case "html":
                    self._head(200, 15)
                    self.wfile.write(b"<html>no</html>")
                case "broken":
                    self._head(500, 0)
                case "loop":
                    self._head(302, 0, Location=self.path)
                case "silent":
                    time.sleep(DRIP_SECONDS)
                case "endless":
                    self._head(200, None)
                    while True:
                        self.wfile.write(bytes(1 << 16))
                case "bomb":
                    self._head(200, len(BOMB), **{"Content-Encoding": "gzip"})
                    self.wfile.write(BOMB)
                case _:
                    self._head(404, 0)

        def _head(self, status: int, length: int | None, **headers: str) -> None:
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def _drip(self, content: bytes, size: int, *, seconds: float) -> None:
            pieces = [content[start : start + size] for start in range(0, len(content), size)]
            for piece in pieces:
                self.wfile.write(piece)
                time.sleep(seconds / len(pieces))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._head(200, 0)
            deliver(self.path, json.loads(body))

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
