"""A web server on loopback that answers as a test asks, well or badly."""

import contextlib
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextlib.contextmanager
def serving(routes: dict, encryption: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve a dictionary of path -> bytes or function(handler) on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            route = routes.get(self.path.partition("?")[0])
            if callable(route):
                route(self)
            elif route is None:
                self.reply(404, b"not here")
            else:
                self.reply(200, route)

        do_HEAD = do_CONNECT = do_POST = do_GET

        def reply(self, status: int, body: bytes, **headers: str):
            self.send_response(status)
            length = headers.pop("Content_Length", str(len(body)))
            self.send_header("Content-Length", length)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if encryption is not None:
        server.socket = encryption.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def cut_off(handler):
    handler.reply(200, b"half", Content_Length="100")
    handler.close_connection = True


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    with contextlib.suppress(OSError):
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {f"/{p.name}": p.read_bytes() for p in folder.iterdir()}


def hub_routes(base_dir: Path, repository: str) -> dict:
    revision = "a" * 40
    files = files_of(base_dir)
    routes: dict = {}
    info = {
        "id": repository,
        "modelId": repository,
        "sha": revision,
        "siblings": [{"rfilename": name[1:]} for name in files],
        "private": False,
        "tags": [],
    }
    for place in ("", f"/revision/{revision}", "/revision/main"):
        routes[f"/api/models/{repository}{place}"] = json.dumps(info).encode()
    tree = [{"type": "file", "path": n[1:], "size": len(d), "oid": "0"} for n, d in files.items()]
    routes[f"/api/models/{repository}/tree/{revision}"] = json.dumps(tree).encode()

    def sender(data: bytes):
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return lambda handler: handler.reply(200, data, ETag=etag, X_Repo_Commit=revision)

    for name, data in files.items():
        routes[f"/{repository}/resolve/{revision}{name}"] = sender(data)
    return routes
