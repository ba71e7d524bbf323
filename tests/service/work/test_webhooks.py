"""A webhook message arrives as it was written, at least once, and only where it may go."""

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from standardwebhooks.webhooks import Webhook

from src.service.http.signed import Signer
from src.service.store.database import Database
from src.service.store.outbox import enqueue
from src.service.work.webhooks import WebhookSender
from tests.weights.http_server import drip, serving

signer = Signer(b"k" * 32)


@dataclass
class Receiver:
    """Notes what comes, and answers with the statuses in turn, the last one for ever."""

    statuses: list[int] = field(default_factory=lambda: [200])
    wait_for: threading.Event | None = None
    messages: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __call__(self, handler: Any) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.times.append(time.monotonic())
        self.messages.append((headers, body))
        if self.wait_for is not None:
            self.wait_for.wait(30)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        with contextlib.suppress(OSError):
            handler.reply(status, b"", Location="/elsewhere")

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self.messages]


@pytest.fixture
def database(tmp_path: Path):
    opened = Database(f"sqlite:///{tmp_path / 'service.db'}")
    yield opened
    opened.close()


def send(
    database: Database,
    work: Callable[[WebhookSender], Coroutine[Any, Any, None]],
    *,
    any_address: bool = True,
    **settings: Any,
) -> None:
    """Run a sender while `work` runs."""

    async def run() -> None:
        sender = WebhookSender(database, signer, any_address=any_address, **settings)
        sending = asyncio.create_task(sender.run())
        try:
            await work(sender)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    asyncio.run(run())


async def until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.01)


def num_waiting(database: Database) -> int:
    return database.read_now(lambda c: c.execute(text("select count(*) from outbox")).scalar_one())


def put(
    database: Database, run: str, event: str, url: str, payload: bytes = b"{}", owner: str = "ann"
) -> None:
    database.write_now(
        lambda connection: enqueue(connection, run, event, url, payload, owner=owner)
    )


def test_the_exact_bytes_arrive_signed(database: Database):
    receiver = Receiver()
    payload = json.dumps({"output": ["é\u2028 💡", "\\"]}, ensure_ascii=False).encode() + b" \n"

    async def work(sender: WebhookSender) -> None:
        put(database, "run", "completed", f"{address}/hook?key=a%20b", payload)
        await until(lambda: num_waiting(database) == 0)

    with serving({"/hook": receiver}) as address:
        send(database, work)
    ((headers, body),) = receiver.messages
    assert body == payload
    assert headers["content-type"] == "application/json"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 10
    assert Webhook(signer.owner_secret("ann")).verify(body, headers)["output"][1] == "\\"
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(signer.owner_secret("bob")).verify(body, headers)


def test_only_the_end_of_a_run_is_told_again_and_then_given_up(
    database: Database, caplog: pytest.LogCaptureFixture
):
    receiver = Receiver([500, 500, 404, 503, 500, 500])

    async def work(sender: WebhookSender) -> None:
        for event in ("start", "output", "completed"):
            put(database, "run", event, f"{address}/hook?secret=hunter2", event.encode())
        await until(lambda: num_waiting(database) == 0)

    with serving({"/hook": receiver}) as address, caplog.at_level(logging.DEBUG):
        send(database, work, pauses=(1.0, 2.0, 0.1))
    assert receiver.bodies == [b"start", b"output", *[b"completed"] * 4]
    ids = [headers["webhook-id"] for headers, _ in receiver.messages]
    assert len(set(ids)) == 3
    assert len(set(ids[2:])) == 1
    gaps = [later - earlier for earlier, later in pairwise(receiver.times[2:])]
    assert gaps[0] >= 0.9
    assert gaps[1] >= 1.9
    stamps = [int(headers["webhook-timestamp"]) for headers, _ in receiver.messages[2:]]
    assert stamps[2] > stamps[1] > stamps[0]
    for headers, body in receiver.messages:
        Webhook(signer.owner_secret("ann")).verify(body, headers, json_parse=False)
    assert "given up after attempt 4: HTTP 500" in caplog.text
    assert "hunter2" not in caplog.text
    assert signer.owner_secret("ann")[6:] not in caplog.text


def test_a_failed_end_is_delivered_when_the_receiver_is_back(database: Database):
    receiver = Receiver([500, 429, 200])

    async def work(sender: WebhookSender) -> None:
        put(database, "run", "completed", f"{address}/hook")
        await until(lambda: num_waiting(database) == 0)

    with serving({"/hook": receiver}) as address:
        send(database, work, pauses=(0.1, 0.1, 0.1, 0.1))
    assert len(receiver.messages) == 3


def test_the_order_of_each_run_is_kept(database: Database):
    receiver = Receiver([200, 500, 200, 500, 500, 200])
    sent: list[bytes] = []

    async def work(sender: WebhookSender) -> None:
        for number in range(40):
            run = f"run{number % 5}"
            sent.append(f"{run} {number}".encode())
            put(database, run, "start", f"{address}/hook", sent[-1])
        await until(lambda: num_waiting(database) == 0)

    with serving({"/hook": receiver}) as address:
        send(database, work)
    for run in range(5):
        prefix = b"run%d " % run
        assert [body for body in receiver.bodies if body.startswith(prefix)] == [
            body for body in sent if body.startswith(prefix)
        ]


def test_a_slow_receiver_is_told_the_latest_output_and_not_all_before(database: Database):
    gate = threading.Event()
    receiver = Receiver(wait_for=gate)

    async def work(sender: WebhookSender) -> None:
        put(database, "run", "output", f"{address}/hook", b"0")
        await until(lambda: len(receiver.messages) == 1)
        for number in range(1, 100):
            put(database, "run", "output", f"{address}/hook", b"%d" % number)
        put(database, "run", "completed", f"{address}/hook", b"end")
        gate.set()
        await until(lambda: num_waiting(database) == 0)

    with serving({"/hook": receiver}) as address:
        send(database, work)
    assert receiver.bodies == [b"0", b"99", b"end"]


def test_slow_receivers_hold_up_nobody_else(database: Database):
    gate = threading.Event()
    slow, quick = Receiver(wait_for=gate), Receiver()

    async def work(sender: WebhookSender) -> None:
        for number in range(200):
            put(database, f"slow{number}", "completed", f"{address}/slow", owner="slow")
        await until(lambda: len(slow.messages) == 4)
        for number in range(20):
            put(database, f"quick{number}", "completed", f"{address}/quick")
        await until(lambda: len(quick.messages) == 20, seconds=8)
        assert len(slow.messages) == 4

    with serving({"/slow": slow, "/quick": quick}) as address:
        try:
            send(database, work)
        finally:
            gate.set()


def test_what_was_under_way_at_a_kill_is_sent_again(database: Database, tmp_path: Path):
    code = """
import asyncio, sys
from src.service.http.signed import Signer
from src.service.store.database import Database
from src.service.work.webhooks import WebhookSender
sender = WebhookSender(Database(sys.argv[1]), Signer(b"k" * 32), any_address=True)
asyncio.run(sender.run())
"""
    gate = threading.Event()
    receiver = Receiver(wait_for=gate)

    async def work(sender: WebhookSender) -> None:
        await until(lambda: num_waiting(database) == 0)

    with serving({"/hook": receiver}) as address:
        for event in ("start", "completed"):
            put(database, "run", event, f"{address}/hook", event.encode())
        process = subprocess.Popen(
            [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'service.db'}"]
        )
        try:
            asyncio.run(until(lambda: len(receiver.messages) == 1))
        finally:
            process.kill()
            process.wait()
        gate.set()
        send(database, work)
    assert receiver.bodies == [b"start", b"start", b"completed"]
    first, again, _ = [headers["webhook-id"] for headers, _ in receiver.messages]
    assert first == again


def test_no_redirect_is_followed(database: Database):
    receiver, elsewhere = Receiver([302]), Receiver()

    async def work(sender: WebhookSender) -> None:
        put(database, "run", "completed", f"{address}/hook")
        await until(lambda: num_waiting(database) == 0)

    with serving({"/hook": receiver, "/elsewhere": elsewhere}) as address:
        send(database, work)
    assert (len(receiver.messages), elsewhere.messages) == (1, [])


def test_a_private_target_needs_an_opt_in(database: Database, caplog: pytest.LogCaptureFixture):
    receiver = Receiver()

    async def work(sender: WebhookSender) -> None:
        put(database, "run", "completed", f"{address}/hook")
        await until(lambda: num_waiting(database) == 0)

    with serving({"/hook": receiver}) as address:
        send(database, work, any_address=False)
        assert "leads to no public address" in caplog.text
        assert receiver.messages == []
        send(database, work)
        assert len(receiver.messages) == 1


def test_a_receiver_has_so_long_and_no_longer(database: Database):
    gate = threading.Event()
    silent = Receiver(wait_for=gate)

    def slow_to_say(handler: Any) -> None:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        drip(handler)

    async def work(sender: WebhookSender) -> None:
        put(database, "silent", "start", f"{address}/silent")
        put(database, "slow", "completed", f"{address}/slow")
        put(database, "none", "start", "http://127.0.0.1:1/")
        await until(lambda: num_waiting(database) == 0, seconds=8)

    with serving({"/silent": silent, "/slow": slow_to_say}) as address:
        try:
            send(database, work, attempt_seconds=2.0)
        finally:
            gate.set()
    assert len(silent.messages) == 1


def test_a_message_is_there_if_its_transaction_is(database: Database):
    def fail(connection: Connection) -> None:
        enqueue(connection, "run", "completed", "http://127.0.0.1/", b"{}", owner="ann")
        raise KeyError

    with pytest.raises(KeyError):
        database.write_now(fail)
    assert num_waiting(database) == 0
