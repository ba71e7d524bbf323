"""A web server for one request: it has the request's local files, and takes its webhooks."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.parse import quote

from src.cli.server_http import HOST


@contextlib.contextmanager
def file_server(
    inputs: dict[str, Any],
) -> Iterator[tuple[dict[str, Any], Queue[dict[str, Any]], str]]:
    """Serve the local files of a request and take its webhooks; yield (inputs, events, hook)."""
    files = {f"/{name}/{quote(v.name)}": v for name, v in inputs.items() if isinstance(v, Path)}
    events: Queue[dict[str, Any]] = Queue()

    class Handler(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            """Return the file of this path; no name at all, which is not found, for any other."""
            return str(files.get(path, ""))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            events.put(json.loads(body))

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer((HOST, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://{HOST}:{server.server_port}"
    urls = {path.split("/")[1]: address + path for path in files}
    try:
        yield {**inputs, **urls}, events, f"{address}/webhook"
    finally:
        server.shutdown()
