"""Trainings: from the queue through a worker to a new version of the destination model."""

import asyncio
import hashlib
import logging
import shutil
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.service.files.blobs import Blobs
from src.service.replicate.objects import weights_url
from src.service.runs.fair_queue import FairQueue
from src.service.runs.finish import RunEnds
from src.service.runs.inputs import WorkInputs
from src.service.runs.live import LiveRun, LiveRuns
from src.service.runs.news import telling_news
from src.service.runs.totals import read_totals
from src.service.settings import ServiceSettings, worker_environment
from src.service.store.database import Database
from src.service.store.ids import new_capability
from src.service.store.runs import (
    Run,
    create_run,
    find_run,
    list_points,
    save_progress,
    unfinished_runs,
)
from src.service.work.engines import Engines
from src.service.work.leftover import end_leftover, note_worker
from src.service.work.workers import Executor, ProcessWorker, Worker

log = logging.getLogger("service.trainings")
SAVE_SECONDS = 1.0
STOP_SECONDS = 20.0
MAX_LOG_CHARACTERS = 4_000_000
GONE = "the training ended without a word (often: it ran out of memory)"


class Trainings:
    """Runs trainings, a few at once, under the supervisor; each can go on from its checkpoint."""

    def __init__(
        self,
        settings: ServiceSettings,
        database: Database,
        blobs: Blobs,
        live_runs: LiveRuns,
        ends: RunEnds,
        engines: Engines,
        executor: Executor,
        inputs: WorkInputs,
    ) -> None:
        self._settings, self._database, self._blobs = settings, database, blobs
        self._live_runs, self._ends, self._inputs = live_runs, ends, inputs
        self._engines, self._executor = engines, executor
        self._queue, self._wake = FairQueue(), asyncio.Event()
        self._workers: dict[str, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._folder = settings.data_dir / "trainings"

    @property
    def num_waiting(self) -> int:
        """How many are in the queue."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """How many are at work."""
        return self._queue.num_taken

    async def recover(self) -> None:
        """Queue again what waited or ran when the service ended."""
        rows = await self._database.read(unfinished_runs, "training")
        for row in sorted(rows, key=lambda row: row.status != "processing"):
            live = self._add(row)
            if row.status == "processing":
                live.start()
                live.log("the service was restarted: going on from the last checkpoint\n")

    async def create(self, values: dict[str, Any]) -> Run:
        """Accept a training; return its row."""
        row = await self._database.write(create_run, {**values, "kind": "training"})
        self._add(row)
        return row

    async def cancel(self, run_id: str) -> Run:
        """End a training now; one that has ended stays as it is."""
        row = await self._ends.end(run_id, "canceled")
        if (worker := self._workers.get(run_id)) is not None:
            with suppress(OSError):
                await worker.send({"do": "cancel"})
        return row

    async def run(self) -> None:
        """Run trainings until this is canceled."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue.num_taken < self._settings.trainings_at_once:
                    if (run_id := self._queue.take()) is None:
                        break
                    task = asyncio.create_task(self._train(run_id))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _add(self, row: Run) -> LiveRun:
        live = self._live_runs.add(row)
        self._queue.put(row.owner, row.id)
        self._wake.set()
        return live

    async def _train(self, run_id: str) -> None:
        folder = self._folder / run_id
        try:
            live = self._live_runs.get(run_id)
            row = await self._database.read(find_run, run_id)
            if live is None or row is None or row.completed_at is not None:
                return  # canceled while it waited
            try:
                folder.mkdir(parents=True, exist_ok=True)
                await self._run_worker(row, live, folder)
            except UserError as error:
                await self._ends.end(run_id, "failed", error=str(error))
            except Exception:
                log.exception("training %s", run_id)
                await self._ends.end(run_id, "failed", error="the service failed; see its log")
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        finally:
            self._queue.give_back(run_id)
            self._wake.set()

    async def _run_worker(self, row: Run, live: LiveRun, folder: Path) -> None:
        async with AsyncExitStack() as stack:
            task = await stack.enter_async_context(self._inputs.of_training(row, live, folder))
            if row.status == "starting" and not await self._ends.start(row.id):
                return
            if self._makes_room():
                stack.callback(self._engines.resume)
                await self._engines.pause()
            environment = {
                **worker_environment(self._settings),
                "CHECKPOINT_DIR": str(folder / "checkpoints"),
            }
            await end_leftover(folder)
            if live.ended.is_set():
                return  # canceled meanwhile
            worker = await self._executor.start("training", environment)
            stack.push_async_callback(worker.stop, STOP_SECONDS)
            if isinstance(worker, ProcessWorker):
                note_worker(folder, worker.pid)
            self._workers[row.id] = worker
            stack.callback(self._workers.pop, row.id)
            output = folder / "weights.tar"
            task["input"].setdefault("resume_from", "auto")
            await worker.send({"do": "train", **task, "output": str(output)})
            if live.ended.is_set():
                await worker.send({"do": "cancel"})
            async with telling_news(self._database, row, live):
                end = await self._follow(row, live, worker)
        status, error = end["status"], end["error"]
        if status == "succeeded":
            await self._keep_weights(row, live, output)
        else:
            await self._ends.end(row.id, status, error=error)

    async def _follow(self, row: Run, live: LiveRun, worker: Worker) -> dict[str, Any]:
        """Take what the worker tells until its end, which is returned."""
        number = len(await self._database.read(list_points, row.id))
        fresh: list[tuple[int, float, Any]] = []
        end = {"status": "failed", "error": GONE}
        next_save = time.monotonic() + SAVE_SECONDS
        async for message in worker:
            match message["event"]:
                case "log" if len(live.logs) < MAX_LOG_CHARACTERS:
                    live.log(message["text"])
                    if len(live.logs) >= MAX_LOG_CHARACTERS:
                        live.log(f"the log is cut here: it has {MAX_LOG_CHARACTERS:,} characters\n")
                case "metric":
                    fresh.append((number, time.time(), message["record"]))
                    number += 1
                    live.tell()
                case "end":
                    end = message
            if end is message or time.monotonic() > next_save:
                await self._database.write(save_progress, row.id, live.logs, fresh)
                fresh, next_save = [], time.monotonic() + SAVE_SECONDS
            if end is message:
                break
        return end

    async def _keep_weights(self, row: Run, live: LiveRun, archive: Path) -> None:
        """Store the archive, and make the new version together with the training's end."""
        key = f"weights-{row.id}"
        size = archive.stat().st_size
        version_id = hashlib.sha256(f"version of training {row.id}".encode()).hexdigest()
        owner, _, name = row.destination.partition("/")
        capability = new_capability()
        values = {
            "training": row.id, "weights": key, "size": size, "capability": capability,
            "alias": (row.job or {}).get("fine_tuned_model"),
        }  # fmt: skip
        url = weights_url(version_id, capability, row.base_url)
        output = {"weights": url, "version": f"{row.destination}:{version_id}"}
        metrics = await asyncio.to_thread(read_totals, archive)
        with self._blobs.pending(key):
            await self._blobs.put_file(key, archive)
            ended = await self._ends.end(
                row.id, "succeeded", output=output, metrics=metrics,
                new_version=(owner, name, version_id, values),
            )  # fmt: skip
            if ended.status != "succeeded":  # canceled in the last moment
                await self._blobs.delete(key)

    def _makes_room(self) -> bool:
        if self._settings.makes_room is not None:
            return self._settings.makes_room
        return self._settings.executor == "local" and Path("/dev/nvidiactl").exists()
