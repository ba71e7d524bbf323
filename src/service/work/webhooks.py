"""Sends webhook messages: each at least once, those of a run in their order."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

from standardwebhooks.webhooks import Webhook

from src.errors import UserError
from src.service.http.signed import Signer
from src.service.store.database import Database
from src.service.store.outbox import TERMINAL_EVENT, Message, next_message, postpone, remove
from src.weights.download.deadline import Deadline
from src.weights.download.transfer import TransferError, post
from src.weights.download.url import in_ascii

PAUSES = (2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between the attempts of a terminal event: the last one comes after about a minute."""
ATTEMPT_SECONDS = 10.0
LOOK_SECONDS = 0.25
FAULT_SECONDS = 5.0
"""How long a message rests after a fault of ours."""
NUM_THREADS = 32
NUM_THREADS_OF_OWNER = 4
"""The other threads are free for others, however slow one owner's receivers are."""

log = logging.getLogger(__name__)


class _NotDelivered(Exception):
    """Why a message did not arrive."""

    def __init__(self, reason: str, *, may_retry: bool) -> None:
        super().__init__(reason)
        self.may_retry = may_retry


class WebhookSender:
    """Sends what the outbox holds, which may be of a process that was killed."""

    def __init__(
        self,
        database: Database,
        signer: Signer,
        *,
        any_address: bool,
        pauses: Sequence[float] = PAUSES,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> None:
        self._database, self._signer = database, signer
        self._any_address = any_address
        self._pauses, self._attempt_seconds = pauses, attempt_seconds
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="webhooks")
        self._in_flight: dict[str, str] = {}
        """The owner of each run that has a message under way."""
        self._is_freed = asyncio.Event()
        """Set when a run or an owner may have its next message sent."""
        self._is_stopping = False

    async def run(self) -> None:
        """Send until canceled; what is under way then is sent again by the next process."""
        free = asyncio.Semaphore(NUM_THREADS)
        deliveries: set[asyncio.Task[None]] = set()

        def end(delivery: asyncio.Task[None]) -> None:
            deliveries.discard(delivery)
            free.release()

        try:
            while True:
                await free.acquire()
                message = await self._next()
                self._in_flight[message.run] = message.owner
                delivery = asyncio.create_task(self._deliver(message))
                deliveries.add(delivery)
                delivery.add_done_callback(end)
        finally:
            self._is_stopping = True
            for delivery in deliveries:
                delivery.cancel()
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _next(self) -> Message:
        """Return a message that may be sent now, once there is one."""
        while True:
            self._is_freed.clear()
            num_of_owner = Counter(self._in_flight.values())
            busy = [owner for owner, num in num_of_owner.items() if num >= NUM_THREADS_OF_OWNER]
            message = await self._database.read(
                next_message, time.time(), list(self._in_flight), busy
            )
            if message is not None:
                return message
            with suppress(TimeoutError):
                # Not wait_for, which in Python 3.11 can lose a cancel.
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._is_freed.wait()

    async def _deliver(self, message: Message) -> None:
        """Make one attempt, and remove or postpone the message."""
        began = time.time()
        try:
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(self._threads, self._send, message)
            except _NotDelivered as error:
                pause = self._pause_after(message)
                if error.may_retry and pause is not None:
                    await self._database.write(postpone, message, began + pause)
                    return
                log.warning(
                    "webhook message %s (%s of %s) is given up after attempt %d: %s",
                    message.id, message.event, message.run, message.num_attempts + 1, error,
                )  # fmt: skip
            await self._database.write(remove, message)
        except Exception:
            # The message stays in the outbox.
            log.exception("webhook message %s could not be handled", message.id)
            await asyncio.sleep(FAULT_SECONDS)
        finally:
            del self._in_flight[message.run]
            self._is_freed.set()

    def _pause_after(self, message: Message) -> float | None:
        """Return the seconds until the next attempt; None where there is none."""
        is_last = message.num_attempts >= len(self._pauses)
        if message.event != TERMINAL_EVENT or is_last:
            return None
        return self._pauses[message.num_attempts]

    def _send(self, message: Message) -> None:
        """Send the message once; raises _NotDelivered."""
        now = datetime.now(UTC)
        secret = self._signer.owner_secret(message.owner)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(secret).sign(message.id, now, message.payload.decode()),
        }
        try:
            status = post(
                in_ascii(message.url),
                message.payload,
                headers=headers,
                deadline=Deadline(self._attempt_seconds, lambda: self._is_stopping),
                any_address=self._any_address,
            )
        except TransferError as error:
            raise _NotDelivered(
                f"no answer (libcurl's code {error.code})", may_retry=True
            ) from None
        except UserError:
            reason = "its URL leads to no public address (ALLOW_PRIVATE_URLS=1 takes others)"
            raise _NotDelivered(reason, may_retry=False) from None
        if not 200 <= status < 300:
            raise _NotDelivered(f"HTTP {status}", may_retry=status >= 400)
