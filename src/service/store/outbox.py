"""Webhook messages that wait: written with what they tell of, and gone when they were sent."""

import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, fields

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    delete,
    exists,
    insert,
    select,
    update,
)

TERMINAL_EVENT = "completed"
_REPLACED_EVENTS = ("output", "logs")


def outbox_table(metadata: MetaData) -> Table:
    """Return the table, one of `metadata`."""
    return Table(
        "outbox",
        metadata,
        Column("number", Integer, primary_key=True),
        Column("id", String, nullable=False),
        Column("run", String, nullable=False),
        Column("owner", String, nullable=False),
        Column("event", String, nullable=False),
        Column("url", Text, nullable=False),
        Column("payload", LargeBinary, nullable=False),
        Column("num_attempts", Integer, nullable=False, default=0),
        Column("due_at", Float, nullable=False),  # Unix seconds
        Index("outbox_of_run", "run", "number"),
        sqlite_autoincrement=True,  # no number twice, for they are the order
    )


# Statements name the table; in whose metadata it is does not matter to them.
_outbox = outbox_table(MetaData())


@dataclass(frozen=True)
class Message:
    """A webhook message, whose id stays the same however often it is sent."""

    number: int
    id: str
    run: str
    owner: str
    event: str
    url: str
    payload: bytes
    num_attempts: int


def enqueue(
    connection: Connection, run: str, event: str, url: str, payload: bytes, *, owner: str
) -> None:
    """Add a message in the caller's transaction, behind all others of its run."""
    if event in _REPLACED_EVENTS:
        # It holds all that an earlier one says, which a slow receiver need not be told any more.
        of_event = (_outbox.c.run == run) & (_outbox.c.event == event)
        connection.execute(delete(_outbox).where(of_event))
    connection.execute(
        insert(_outbox).values(
            id=f"msg_{secrets.token_urlsafe(18)}",
            run=run,
            owner=owner,
            event=event,
            url=url,
            payload=payload,
            due_at=time.time(),
        )
    )


def next_message(
    connection: Connection, now: float, runs: Collection[str], owners: Collection[str]
) -> Message | None:
    """Return the oldest message that is due and the first of its run, of other runs and owners."""
    earlier = _outbox.alias()
    is_behind = exists().where(earlier.c.run == _outbox.c.run, earlier.c.number < _outbox.c.number)
    row = connection.execute(
        select(*(_outbox.c[field.name] for field in fields(Message)))
        .where(
            _outbox.c.due_at <= now,
            _outbox.c.run.not_in(runs),
            _outbox.c.owner.not_in(owners),
            ~is_behind,
        )
        .order_by(_outbox.c.number)
        .limit(1)
    ).first()
    return None if row is None else Message(*row)


def remove(connection: Connection, message: Message) -> None:
    """Forget a message that was delivered, or given up."""
    connection.execute(delete(_outbox).where(_outbox.c.number == message.number))


def postpone(connection: Connection, message: Message, due_at: float) -> None:
    """Keep a message whose attempt failed until it is due again."""
    connection.execute(
        update(_outbox)
        .where(_outbox.c.number == message.number)
        .values(num_attempts=message.num_attempts + 1, due_at=due_at)
    )
