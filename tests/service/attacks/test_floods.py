"""However much one owner asks for, another is answered soon."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import requests

from tests.service.attacks.conftest import BASE, Attacked

FLOOD = 60
"""More than the engine answers at once."""
ENDLESS = 20_000


@contextmanager
def connected(attacked: Attacked, method: str, path: str, body: str = "") -> Iterator[None]:
    """Context of a request whose answer nobody reads."""
    host, port = attacked.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
            f"Authorization: Bearer {attacked.tokens['mallory']}\r\n\r\n"
        )
        connection.sendall((head + body).encode())
        yield


def assert_alice_is_answered(attacked: Attacked) -> None:
    deadline = time.monotonic() + 30
    while 'queued{kind="prediction"} 0' in requests.get(f"{attacked.url}/metrics", timeout=10).text:
        assert time.monotonic() < deadline, "the flood does not fill the engine"
        time.sleep(0.05)
    prediction = attacked.predict(owner="alice", headers={"Prefer": "wait=30"})
    assert prediction["status"] == "succeeded"


def test_another_owner_is_answered_beside_endless_chats(attacked: Attacked):
    body = {
        "model": BASE, "stream": True, "max_tokens": ENDLESS, "min_tokens": ENDLESS,
        "messages": [{"role": "user", "content": "Go on."}],
    }  # fmt: skip
    with ExitStack() as stack:
        for _ in range(FLOOD):
            chat = connected(attacked, "POST", "/openai/v1/chat/completions", json.dumps(body))
            stack.enter_context(chat)
        assert_alice_is_answered(attacked)
    # The answers of clients that are gone have ended.
    assert attacked.predict(headers={"Prefer": "wait=30"})["status"] == "succeeded"


def test_another_owner_is_answered_beside_endless_predictions_and_streams(attacked: Attacked):
    endless = [attacked.predict(num_tokens=ENDLESS) for _ in range(FLOOD)]
    with ExitStack() as stack:
        for prediction in endless:
            path = prediction["urls"]["stream"].removeprefix(attacked.url)
            stack.enter_context(connected(attacked, "GET", path))
        assert_alice_is_answered(attacked)
    for prediction in endless:
        canceled = attacked.ask("POST", f"/v1/predictions/{prediction['id']}/cancel")
        assert canceled.json()["status"] == "canceled"
    assert attacked.predict(headers={"Prefer": "wait=30"})["status"] == "succeeded"
