"""The database: SQLite in one file, or Postgres; and pages of what it holds."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Select,
    asc,
    create_engine,
    desc,
    event,
    tuple_,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from src.errors import UserError
from src.service.store.schema import metadata

Result = TypeVar("Result")
READ_THREADS = 8
BUSY_SECONDS = 10


class Write:
    """A function that waits to be run in a transaction, and what came of it."""

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self._work = work
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Any] = self.loop.create_future()
        self._result: Any = None
        self.error: Exception | None = None

    def run(self, connection: Connection) -> None:
        """Run it; a failure is raised."""
        self._result = self._work(connection)

    def run_beside_others(self, connection: Connection) -> None:
        """Run it; a failure leaves nothing of it in the transaction, and is told to who waits."""
        try:
            with connection.begin_nested():
                self.run(connection)
        except Exception as error:
            self.error = error

    def settle(self) -> None:
        """Tell whoever waits, in the event loop."""
        if self.done.cancelled():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
        else:
            self.done.set_result(self._result)


class Database:
    """Runs functions of a connection in transactions, aside from the event loop.

    One thread writes: all that waits meanwhile goes to the disk together.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError:
            raise UserError("DATABASE_URL: expected sqlite:///PATH or postgresql://...") from None
        is_sqlite = parsed.get_backend_name() == "sqlite"
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        self._engine: Engine = create_engine(
            parsed,
            pool_size=READ_THREADS + 2,
            pool_pre_ping=not is_sqlite,
            hide_parameters=True,  # errors are logged, and users' texts are not
        )
        self._writing_engine = self._engine.execution_options(writes=True)
        if is_sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        self._writing = threading.Lock()
        self._waiting: deque[Write] = deque()
        self._readers = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="database-read")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database-write")
        try:
            with self._transaction() as connection:
                metadata.create_all(connection)
        except OperationalError as error:
            raise UserError(f"DATABASE_URL: the database cannot be opened: {error.orig}") from None

    async def read(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function that only reads, with a connection before its arguments."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self.read_now, work, *arguments)

    async def write(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run a function in a transaction; what it wrote is on disk when this returns."""
        write = Write(lambda connection: work(connection, *arguments))
        self._waiting.append(write)
        self._writer.submit(self._write_waiting)
        return await write.done

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
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()

    def _write_waiting(self) -> None:
        """Run all writes that wait in one transaction."""
        writes = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not writes:
            return
        try:
            with self._transaction() as connection:
                if len(writes) == 1:
                    writes[0].run(connection)
                else:
                    for write in writes:
                        write.run_beside_others(connection)
        except Exception as error:
            for write in writes:
                write.error = error
        writes[0].loop.call_soon_threadsafe(_settle, writes)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._writing, self._writing_engine.begin() as connection:
            yield connection


def _settle(writes: Sequence[Write]) -> None:
    for write in writes:
        write.settle()


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # what was accepted outlives a loss of power
        f"busy_timeout={BUSY_SECONDS * 1000}",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # What only reads needs none. A write that begins as a read could not wait for another process.
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


class Place(NamedTuple):
    """Where a page lies in a list that is the newest first."""

    created_at: str
    name: str
    is_before: bool = False
    """Whether it ends before this row; else it begins behind it."""


def select_page(
    connection: Connection,
    query: Select[Any],
    time: Any,
    name: Any,
    *,
    limit: int,
    place: Place | None,
) -> Sequence[Row[Any]]:
    """Return at most `limit` rows of a query, the newest first; `time` and `name` order them."""
    is_back = place is not None and place.is_before
    if place is not None:
        here, there = tuple_(time, name), tuple_(*place[:2])
        query = query.where(here > there if is_back else here < there)
    order = asc if is_back else desc
    rows = connection.execute(query.order_by(order(time), order(name)).limit(limit)).all()
    return rows[::-1] if is_back else rows
