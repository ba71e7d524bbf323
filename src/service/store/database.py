"""The database: SQLite in one file, or Postgres."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from src.errors import UserError
from src.service.store.schema import metadata

Result = TypeVar("Result")
THREADS = 8
BUSY_SECONDS = 10


class Database:
    """Runs functions of a connection in transactions, aside from the event loop."""

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise UserError("DATABASE_URL: expected sqlite:///PATH or postgresql://...") from None
        is_sqlite = parsed.get_backend_name() == "sqlite"
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        self._engine: Engine = create_engine(parsed, pool_size=THREADS, pool_pre_ping=not is_sqlite)
        # SQLite has one writer at a time, and lets others wait in long steps.
        self._writing = threading.Lock() if is_sqlite else nullcontext()
        if is_sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="database")
        try:
            metadata.create_all(self._engine)
        except OperationalError as error:
            raise UserError(f"DATABASE_URL: the database cannot be opened: {error.orig}") from None

    async def read(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function that only reads, with a connection before its arguments."""
        return await self._aside(self.read_now, work, arguments)

    async def write(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function in a transaction; what it wrote is on disk when this returns."""
        return await self._aside(self.write_now, work, arguments)

    def read_now(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Like `read`, in this thread."""
        with self._engine.connect() as connection:
            return work(connection, *arguments)

    def write_now(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Like `write`, in this thread."""
        with self._transaction() as connection:
            return work(connection, *arguments)

    def close(self) -> None:
        """Finish what runs, and close all connections."""
        self._threads.shutdown()
        self._engine.dispose()

    async def _aside(
        self, run: Callable[..., Result], work: Callable[..., Result], arguments: tuple[Any, ...]
    ) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, run, work, *arguments)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._writing, self._engine.begin() as connection:
            yield connection


def _prepare_sqlite(connection: Any, record: Any) -> None:
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # what was accepted outlives a loss of power
        f"busy_timeout={BUSY_SECONDS * 1000}",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
