"""Predictions: from the queue through the engine to their end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from src.errors import UserError
from src.service.replicate.objects import render_run
from src.service.runs.fair_queue import FairQueue
from src.service.runs.finish import RunEnds
from src.service.runs.inputs import WorkInputs
from src.service.runs.live import LiveRun, LiveRuns
from src.service.runs.news import telling_news
from src.service.store.database import Database
from src.service.store.ids import new_id
from src.service.store.models import Version, find_version
from src.service.store.runs import Run, create_run, find_run, unfinished_runs
from src.service.times import parse_time
from src.service.work.engine_client import EngineError, Message
from src.service.work.engines import Engines

log = logging.getLogger("service.predictions")
DIRECT = "direct-"
CUT_OFF = "the service ended while this prediction ran; create it again"
MORE_THAN_SLOTS = 4
"""So many more requests than it answers at once wait in the engine, which is then never idle."""
FREE_PART = 8
"""One of so many slots stays free of the owner who fills all others, however long that takes."""
TURN_SECONDS = 900.0
"""The longest that a request without a row waits for its turn, or for an engine that loads."""


class Predictions:
    """Hands predictions to the engine, as many as it answers at once, fair to their owners."""

    def __init__(
        self,
        database: Database,
        live_runs: LiveRuns,
        ends: RunEnds,
        engines: Engines,
        inputs: WorkInputs,
        *,
        limit_seconds: float,
    ) -> None:
        self._database, self._live_runs, self._ends = database, live_runs, ends
        self._engines, self._inputs, self._limit_seconds = engines, inputs, limit_seconds
        self._queue, self._wake = FairQueue(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[str, asyncio.Future[None]] = {}
        """Of the requests without a row that wait."""
        self.is_stopping = False
        """Whether those that wait are left for the next service."""
        engines.on_change(self._wake.set)

    @property
    def num_waiting(self) -> int:
        """How many are in the queue."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """How many the engine has."""
        return self._queue.num_taken

    async def recover(self) -> None:
        """Queue again what waited when the service ended, and fail what ran."""
        for row in await self._database.read(unfinished_runs, "prediction"):
            if row.status == "processing":
                await self._ends.end(row.id, "failed", error=CUT_OFF)
            else:
                self._add(row)

    async def create(self, accept: Callable[[Connection], dict[str, Any]]) -> tuple[Run, LiveRun]:
        """Accept a prediction; return its row, and itself as it runs.

        `accept` gives the row's columns, or raises why it is refused, in the same transaction.
        """
        row = await self._database.write(
            lambda connection: create_run(connection, {**accept(connection), "kind": "prediction"})
        )
        return row, self._add(row)

    async def direct(self, owner: str, inputs: dict[str, Any]) -> AsyncIterator[Message]:
        """Yield what the engine says of a request without a row, which waits for its turn too.

        One that is left before its end is canceled. Raises EngineError where there is no engine.
        """
        request_id = f"{DIRECT}{new_id()}"
        turn = self._turns[request_id] = asyncio.get_running_loop().create_future()
        self._queue.put(owner, request_id)
        self._wake.set()
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await turn
            async for message in self._engines.stream(request_id, inputs):
                yield message
        except TimeoutError:
            raise EngineError("the engine had no room in time") from None
        finally:
            if self._turns.pop(request_id, None) is None:  # its turn has come
                self._queue.give_back(request_id)
                self._wake.set()

    async def cancel(self, run_id: str, status: str = "canceled", error: str | None = None) -> Run:
        """End a prediction now; one that has ended stays as it is."""
        row = await self._ends.end(run_id, status, error=error)
        await self._engines.cancel(run_id)
        return row

    async def run(self) -> None:
        """Hand out predictions until this is canceled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._engines.error:
                    await self._fail_all(self._engines.error)
                num_slots = self._engines.num_slots
                most, num_free = num_slots + MORE_THAN_SLOTS, num_slots // FREE_PART
                most_of_owner = num_slots - num_free if num_free else most
                while self._takes_more(most):
                    if (run_id := self._queue.take(most_of_owner)) is None:
                        break
                    if run_id.startswith(DIRECT):
                        self._give_turn(run_id)
                    else:
                        self._start_task(self._predict(run_id))
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _give_turn(self, request_id: str, error: str | None = None) -> None:
        turn = self._turns.pop(request_id, None)
        if turn is None:  # who asked is gone
            self._queue.give_back(request_id)
        elif turn.done():  # is just going, and gives it back
            pass
        elif error is None:
            turn.set_result(None)
        else:
            turn.set_exception(EngineError(error))

    def _takes_more(self, most: int) -> bool:
        return self._engines.is_ready and self._queue.num_taken < most and not self.is_stopping

    def _add(self, row: Run) -> LiveRun:
        live = self._live_runs.add(row)
        self._queue.put(row.owner, row.id)
        self._wake.set()
        if row.deadline is not None:
            left = (parse_time(row.deadline) - datetime.now(UTC)).total_seconds()
            self._start_task(self._end_at_deadline(live, max(left, 0.0)))
        return live

    def _start_task(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_at_deadline(self, live: LiveRun, seconds: float) -> None:
        if not await live.wait(seconds):
            has_started = live.status != "starting"
            live.log("the deadline passed\n")
            await self.cancel(live.id, "canceled" if has_started else "aborted")

    async def _fail_all(self, error: str) -> None:
        while (run_id := self._queue.take()) is not None:
            if run_id.startswith(DIRECT):
                self._give_turn(run_id, error)
                continue
            self._queue.give_back(run_id)
            await self._ends.end(run_id, "failed", error=error)

    async def _predict(self, run_id: str) -> None:
        try:
            live = self._live_runs.get(run_id)
            if live is None:
                return  # canceled while it waited
            row, version = await self._database.read(_find_work, run_id)
            if row.status != "starting":
                self._live_runs.end(row)  # canceled before it was in the queue
                return
            try:
                async with asyncio.timeout(self._limit_seconds):
                    await self._follow(row, version, live)
            except TimeoutError:
                await self.cancel(run_id, "failed", "Prediction timed out")
            except (UserError, EngineError) as error:
                await self._ends.end(run_id, "failed", error=str(error))
            except Exception:
                log.exception("prediction %s", run_id)
                await self._ends.end(run_id, "failed", error="the service failed; see its log")
        finally:
            self._queue.give_back(run_id)
            self._wake.set()

    async def _follow(self, row: Run, version: Version | None, live: LiveRun) -> None:
        end = None
        async with (
            self._inputs.of_prediction(row, version, live) as inputs,
            telling_news(self._database, row, live),
        ):
            async for message in self._engines.stream(row.id, inputs):
                match message["event"]:
                    case "started":
                        if not await self._ends.start(row.id):
                            return
                    case "output":
                        live.push(message["text"])
                    case "log":
                        live.log(message["text"])
                    case "end":
                        end = message
        if end is not None:
            live.metrics |= _of_run(end["metrics"])
            await self._ends.end(row.id, end["status"], error=end["error"])


def _find_work(connection: Connection, run_id: str) -> tuple[Run, Version | None]:
    row = find_run(connection, run_id)
    assert row is not None
    return row, find_version(connection, row.version)


def show_live(row: Run, live: LiveRun | None, base_url: str) -> dict[str, Any]:
    """Return a run as its row says, or as far as it has got."""
    if live is None or row.completed_at is not None:
        return render_run(row, base_url)
    if live.row is not None:
        return render_run(live.row, base_url)
    shown: dict[str, Any] = {"status": live.status, "logs": live.logs}
    if live.chunks:
        shown["output"] = list(live.chunks)
    return render_run(row, base_url, **shown)


def _of_run(metrics: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is reported of the whole process, which is the operator's."""
    return {name: value for name, value in metrics.items() if name != "process"}
