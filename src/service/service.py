"""The parts of the service, put together, and their beginning and end."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection

from src.cli.schema import build_schema
from src.service.files.blobs import Blobs
from src.service.files.removal import delete_unnamed
from src.service.http.auth import Owners
from src.service.http.limits import RateLimits, check_stored, check_unfinished
from src.service.http.signed import Signer
from src.service.runs.finish import RunEnds
from src.service.runs.inputs import WorkInputs
from src.service.runs.live import LiveRuns
from src.service.settings import ServiceSettings
from src.service.store.database import Database
from src.service.store.models import add_base_models
from src.service.store.tokens import keep_secret
from src.service.store.usage import count_usage, find_usage
from src.service.work.engines import Engines, replica_environments
from src.service.work.predictions import Predictions
from src.service.work.retention import Retention
from src.service.work.trainings import Trainings
from src.service.work.webhooks import WebhookSender
from src.service.work.workers import make_executor

log = logging.getLogger("service")


class Service:
    """All that request handlers need."""

    def __init__(self, settings: ServiceSettings, database: Database) -> None:
        self.settings, self.database = settings, database
        self.schema: dict[str, Any] = build_schema()
        key = database.write_now(keep_secret, "key", secrets.token_hex(32))
        self.signer = Signer(bytes.fromhex(key))
        self.blobs = Blobs(settings.data_dir / "files", settings.files_url or "")
        self.owners = Owners(database)
        self.rate_limits = RateLimits(settings.creates_per_minute, settings.requests_per_minute)
        self.live_runs = LiveRuns()
        self.ends = ends = RunEnds(database, self.live_runs)
        executor = make_executor(settings)
        inputs = WorkInputs(settings, database, self.blobs, self.schema)
        self.engines = Engines(executor, replica_environments(settings))
        self.predictions = Predictions(
            database, self.live_runs, ends, self.engines, inputs,
            limit_seconds=settings.prediction_seconds,
        )  # fmt: skip
        self.trainings = Trainings(
            settings, database, self.blobs, self.live_runs, ends, self.engines, executor, inputs
        )
        self.webhooks = WebhookSender(database, self.signer, any_address=settings.any_address)
        self.uploads: set[str] = set()
        """Those whose bytes are coming."""
        self._retention = Retention(settings, database, self.blobs)
        self._tasks: list[asyncio.Task[Any]] = []
        self.has_failed = False
        """Whether a part of it has ended by itself: it can only end, and be started again."""
        self.on_failure: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Take up what was left, and begin to work."""
        await self.database.write(add_base_models, self.settings.base_model)
        await self.database.write(count_usage)
        await delete_unnamed(self.database, self.blobs)
        await self.predictions.recover()
        await self.trainings.recover()
        parts = (self.engines, self.predictions, self.trainings, self.webhooks, self._retention)
        self._tasks = [asyncio.create_task(part.run()) for part in parts]
        for task in self._tasks:
            task.add_done_callback(self._note_end)

    def begin_stop(self) -> None:
        """Begin no more predictions: those that run have time to end."""
        self.predictions.is_stopping = True

    async def stop(self) -> None:
        """End the work: trainings can go on from their checkpoints."""
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.wait([task])
        self.database.close()

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        """Have the service end with a part of it that ended before it was asked to."""
        if not task.cancelled():
            log.critical("a part of the service has ended", exc_info=task.exception())
            self.has_failed = True
            self.on_failure()

    async def check_room(self, owner: str, num_bytes: int) -> None:
        """Raise Problem where an owner has too much stored or unfinished for more."""
        await self.database.read(self.check_room_now, owner, num_bytes)

    def check_room_now(self, connection: Connection, owner: str, num_bytes: int) -> None:
        """Like `check_room`, in a transaction."""
        stored, unfinished = find_usage(connection, owner)
        check_stored(stored, num_bytes, self.settings.stored_bytes)
        check_unfinished(unfinished, self.settings.unfinished_limit)
