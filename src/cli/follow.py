"""Following what a server does with a request, as it does it."""

import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from queue import Empty, Queue
from typing import Any

import requests

from src.cli.server_http import RequestError, check_answer, http_session, plain_error

SILENT_SECONDS = 2.0
FREE_SECONDS = 10.0


def follow_training(
    address: str, request: dict[str, Any], events: Queue[dict[str, Any]]
) -> dict[str, Any]:
    """Start the training, print its log as it grows, and return how it ended."""
    url = f"{address}/trainings/local"
    answer = http_session().put(url, json=request, headers={"Prefer": "respond-async"}, timeout=60)
    check_answer(answer)
    num_shown = 0
    is_canceled = False
    while True:
        try:
            event = events.get(timeout=SILENT_SECONDS)
        except Empty:
            # Nothing for so long: an answer of any kind shows that the server is alive.
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


def stream_answer(address: str, inputs: dict[str, Any]) -> Iterator[str]:
    """Yield the answer of a server as it comes; its log goes to standard error."""
    send = partial(
        http_session().post,
        f"{address}/predictions",
        json={"input": inputs},
        headers={"Accept": "text/event-stream"},
        stream=True,
        timeout=3600,
    )
    started = time.monotonic()
    # Cog's one slot is free only a moment after the last answer.
    while (answer := send()).status_code == 409 and time.monotonic() < started + FREE_SECONDS:
        time.sleep(0.1)
    check_answer(answer)
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
