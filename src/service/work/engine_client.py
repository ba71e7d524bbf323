"""The engine: one process that answers many requests at once; it comes back when it dies."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from src.service.work.workers import Executor, Worker

log = logging.getLogger("service.engine")
RETRY_SECONDS = (0.5, 2.0, 10.0, 30.0)
DRAIN_SECONDS = 120.0
STOP_SECONDS = 5.0
GONE = "the engine ended while this ran (often: it ran out of memory)"
GONE_LOADING = "the engine ended while it loaded the model (often: it ran out of memory)"
Message = dict[str, Any]


class EngineError(Exception):
    """The engine cannot answer; the message is for the user."""


class EngineClient:
    """Keeps one engine running, hands it requests and hands out what it says of each."""

    def __init__(self, executor: Executor, environment: dict[str, str]) -> None:
        self._executor, self._environment = executor, environment
        self.model: Message = {}
        """What the engine says of its model, once it is ready."""
        self.report: Message = {}
        """The engine's own counts, as last told."""
        self.error: str | None = None
        """Why it cannot be started."""
        self.on_change: Callable[[], None] = lambda: None
        self._worker: Worker | None = None
        self._listeners: dict[str, asyncio.Queue[Message]] = {}
        self._ready, self._may_run, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._may_run.set()
        self._idle.set()
        self._num_pauses = 0

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self._ready.is_set() and self._may_run.is_set()

    @property
    def num_running(self) -> int:
        """How many requests it has."""
        return len(self._listeners)

    @property
    def num_slots(self) -> int:
        """How many requests it answers at once."""
        return int(self.model.get("num_slots", 1))

    async def run(self) -> None:
        """Keep an engine running until this is canceled."""
        num_failures = 0
        try:
            while True:
                await self._may_run.wait()
                was_ready = await self._serve()
                num_failures = 0 if was_ready else num_failures + 1
                if self._may_run.is_set():
                    pause = RETRY_SECONDS[min(num_failures, len(RETRY_SECONDS)) - 1]
                    await asyncio.sleep(pause if num_failures else 0)
        finally:
            await self._stop()

    async def stream(self, request_id: str, inputs: dict[str, Any]) -> AsyncIterator[Message]:
        """Yield what the engine says of a request, the last being its `end`.

        A request that is left before its end is canceled. Raises EngineError where there is no
        engine.
        """
        worker = self._worker
        if not self.is_ready or worker is None:
            raise EngineError(self.error or "the engine is not ready")
        messages: asyncio.Queue[Message] = asyncio.Queue()
        self._listeners[request_id] = messages
        self._idle.clear()
        has_ended = False
        try:
            try:
                await worker.send({"do": "predict", "id": request_id, "input": inputs})
            except OSError:
                raise EngineError(GONE) from None
            while not has_ended:
                message = await messages.get()
                has_ended = message["event"] == "end"
                yield message
        finally:
            self._listeners.pop(request_id, None)
            if not has_ended:
                with suppress(Exception):
                    await worker.send({"do": "cancel", "id": request_id})
            if not self._listeners:
                self._idle.set()

    async def cancel(self, request_id: str) -> None:
        """Have the engine end a request; its `end` still comes."""
        if request_id in self._listeners and self._worker is not None:
            with suppress(OSError):
                await self._worker.send({"do": "cancel", "id": request_id})

    async def ask_report(self) -> None:
        """Ask for the engine's counts, which come a moment later."""
        if self.is_ready and self._worker is not None:
            with suppress(OSError):
                await self._worker.send({"do": "report"})

    async def pause(self) -> None:
        """Let running requests end; the engine stays down until `resume` was called as often."""
        self._num_pauses += 1
        self._may_run.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._idle.wait()
        await self._stop()

    def resume(self) -> None:
        """Let the engine come back."""
        self._num_pauses -= 1
        if self._num_pauses == 0:
            self._may_run.set()

    async def _serve(self) -> bool:
        """Run one engine to its end; return whether it was ready."""
        was_ready = False
        try:
            self._worker = worker = await self._executor.start("engine", self._environment)
        except OSError as error:
            self._fail(f"the engine cannot be started: {error}")
            return False
        try:
            async for message in worker:
                match message["event"]:
                    case "ready":
                        self.model, self.error, was_ready = message["model"], None, True
                        self._ready.set()
                        log.info("engine ready", extra={"model": self.model.get("name")})
                        self.on_change()
                    case "failed":
                        self._fail(message["error"])
                    case "report":
                        self.report = message["metrics"]
                    case _:
                        if (listener := self._listeners.get(message["id"])) is not None:
                            listener.put_nowait(message)
            if self._may_run.is_set():
                log.error("the engine ended with %s", worker.returncode)
                if not was_ready and self.error is None:
                    self._fail(GONE_LOADING)
        finally:
            self._ready.clear()
            await worker.stop(STOP_SECONDS)
            self._worker = None
            for request_id, listener in self._listeners.items():
                end = {"event": "end", "id": request_id, "status": "failed", "error": GONE}
                listener.put_nowait({**end, "metrics": {}})
        return was_ready

    def _fail(self, error: str) -> None:
        self.error = error
        log.error("engine failed: %s", error)
        self.on_change()

    async def _stop(self) -> None:
        if self._worker is not None:
            await self._worker.stop(STOP_SECONDS)
