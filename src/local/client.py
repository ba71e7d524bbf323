"""What `cog train` and `cog predict` do, without Docker: one request to Cog's own server.

`python -m src.local.client train DATA.jsonl [-i name=value ...] [-o weights.tar]`
`python -m src.local.client predict -i prompt=... [-w weights.tar]`
"""

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any
from urllib.parse import quote

import requests

from src.errors import UserError
from src.local.inputs import existing_file, parse_inputs
from src.local.schema import write_schema
from src.local.server import ROOT, server_command, server_environment
from src.training.run import plan_training

HOST = "127.0.0.1"
SILENT_SECONDS = 2.0
_WRAPPING = re.compile(
    r"^(?:(?:Async prediction|Prediction|Training) failed: |Generator iteration error: "
    r"|(?:UserError|HttpError|ValueError|TrainingError|RuntimeError): )+"
)


class RequestError(Exception):
    """The request failed; the message is what to tell the user."""


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        schema = json.loads(write_schema(root).read_text())["components"]["schemas"]
        if options.mode == "train":
            pairs = [f"train_data={options.data}", *options.input]
            inputs = parse_inputs(pairs, schema["TrainingInput"]["properties"])
            if options.plan:
                print(*plan_training(inputs), sep="\n")
                return 0
            _train(inputs, Path(options.output), root, verbose=options.verbose)
        else:
            inputs = parse_inputs(options.input, schema["Input"]["properties"])
            if options.weights is not None:
                os.environ["COG_WEIGHTS"] = _weights_source(options.weights)
            _predict(inputs, root, verbose=options.verbose)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except requests.RequestException:
        print("error: the server is gone (often: the machine ran out of memory)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("canceled", file=sys.stderr)
        return 130
    return 0


def plain_error(error: str) -> str:
    """Return the sentence of an error without what Cog and Python put before it."""
    return _WRAPPING.sub("", error)


def http_session() -> requests.Session:
    """Return a session that goes straight to loopback, whatever proxy the environment names."""
    session = requests.Session()
    session.trust_env = False
    return session


def _weights_source(name: str) -> str:
    """Return a URL as it is and a path as the server, which runs elsewhere, will find it."""
    if "://" in name:
        return name
    path = Path(name) if Path(name).is_dir() else existing_file(name, "-w")
    return str(path.resolve())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts")
    modes = parser.add_subparsers(dest="mode", required=True)
    train = modes.add_parser("train", prog="scripts/train", description="Train on a JSONL file")
    train.add_argument("data", help="JSONL file")
    train.add_argument("-o", "--output", default="weights.tar", help="where to put the weights")
    train.add_argument("--plan", action="store_true", help="tell what would be done, and stop")
    predict = modes.add_parser("predict", prog="scripts/predict", description="Answer a prompt")
    predict.add_argument("-w", "--weights", help="fine-tuned weights: a file, folder or URL")
    for mode in (train, predict):
        mode.add_argument("-i", "--input", action="append", default=[], metavar="name=value")
        mode.add_argument("--verbose", action="store_true", help="show the server's own log")
    return parser


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _train(inputs: dict[str, Any], output: Path, root: Path, *, verbose: bool) -> None:
    started = time.monotonic()
    if not output.parent.is_dir():
        raise UserError(f"-o: there is no folder {output.parent}")
    with (
        _file_server(inputs) as (served, events, hook),
        running_server("train", root, verbose=verbose) as address,
    ):
        request = {
            "input": served,
            "webhook": hook,
            "webhook_events_filter": ["logs", "completed"],
        }
        result = _follow_training(address, request, events)
    _write_output(result["output"]["weights"], output)
    size = output.stat().st_size / 1e6
    print(f"weights: {output} ({size:.1f} MB) after {time.monotonic() - started:.0f} s", flush=True)


def _follow_training(
    address: str, request: dict[str, Any], events: "Queue[dict[str, Any]]"
) -> dict[str, Any]:
    """Start the training, print its log as it grows, and return how it ended."""
    url = f"{address}/trainings/local"
    answer = http_session().put(url, json=request, headers={"Prefer": "respond-async"}, timeout=60)
    _check_answer(answer)
    num_shown = 0
    is_canceled = False
    while True:
        try:
            event = events.get(timeout=SILENT_SECONDS)
        except Empty:
            # Without a word for so long: an answer of any kind shows that the server lives.
            http_session().get(address, timeout=30)
            continue
        except KeyboardInterrupt:
            if is_canceled:
                raise
            is_canceled = True
            http_session().post(f"{url}/cancel", timeout=30)
            continue
        log = event.get("logs") or ""
        print(log[num_shown:], end="", flush=True)
        num_shown = max(num_shown, len(log))
        match event.get("status"):
            case "succeeded":
                return event
            case "canceled":
                raise KeyboardInterrupt
            case "failed":
                raise RequestError(plain_error(event.get("error") or "the training failed"))


def _write_output(url: str, output: Path) -> None:
    """Write the weights, whole or not at all."""
    partial = output.with_name(f".{output.name}.partial")
    if url.startswith("data:"):
        partial.write_bytes(base64.b64decode(url.partition(",")[2]))
    else:
        partial.write_bytes(requests.get(url, timeout=600).content)
    partial.rename(output)


def _predict(inputs: dict[str, Any], root: Path, *, verbose: bool) -> None:
    with running_server("predict", root, verbose=verbose) as address:
        for piece in stream_answer(address, inputs):
            print(piece, end="", flush=True)
    print()


def stream_answer(address: str, inputs: dict[str, Any]) -> Iterator[str]:
    """Yield the answer of a server as it comes; its log goes to standard error."""
    answer = http_session().post(
        f"{address}/predictions",
        json={"input": inputs},
        headers={"Accept": "text/event-stream"},
        stream=True,
        timeout=3600,
    )
    _check_answer(answer)
    for name, data in _sse_events(answer):
        if name == "output":
            yield data["chunk"]
        elif name == "log":
            print(data.get("data", ""), end="", file=sys.stderr, flush=True)
        elif name == "error" or data.get("status") == "failed":
            raise RequestError(plain_error(data.get("error") or "the prediction failed"))


def _sse_events(answer: requests.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for raw in answer.iter_lines(chunk_size=1):
        line = raw.decode()
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            yield name, json.loads(line[5:])


def _check_answer(answer: requests.Response) -> None:
    """Raise for a request that the server refused, with its words."""
    if answer.status_code < 400:
        return
    try:
        details = answer.json()["detail"]
        lines = [f"{error['loc'][-1]}: {error['msg']}" for error in details]
    except (ValueError, KeyError, TypeError):
        lines = [f"the server refused the request: {answer.status_code} {answer.text[:200]}"]
    raise RequestError("\n".join(lines))


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


@contextlib.contextmanager
def _file_server(
    inputs: dict[str, Any],
) -> Iterator[tuple[dict[str, Any], "Queue[dict[str, Any]]", str]]:
    """Serve the local files of a request and take its webhooks; yield (inputs, events, hook)."""
    files = {f"/{name}/{quote(v.name)}": v for name, v in inputs.items() if isinstance(v, Path)}
    events: Queue[dict[str, Any]] = Queue()
    server = ThreadingHTTPServer((HOST, 0), _handler(files, events.put))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://{HOST}:{server.server_port}"
    urls = {path.split("/")[1]: address + path for path in files}
    try:
        yield {**inputs, **urls}, events, f"{address}/webhook"
    finally:
        server.shutdown()


def _handler(
    files: dict[str, Path], on_event: Callable[[dict[str, Any]], None]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = files.get(self.path)
            if path is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            with path.open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            on_event(json.loads(body))

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
