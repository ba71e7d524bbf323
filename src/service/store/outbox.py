"""Webhook messages that wait: written with what they tell of, and gone when they were sent."""

import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, fields

from sqlalchemy import Connection, delete, exists, insert, select, update

from src.service.store.schema import outbox

TERMINAL_EVENT = "completed"
_REPLACED_EVENTS = ("output", "logs")


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
        of_event = (outbox.c.run == run) & (outbox.c.event == event)
        connection.execute(delete(outbox).where(of_event))
    connection.execute(
        insert(outbox).values(
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
    earlier = outbox.alias()
    is_behind = exists().where(earlier.c.run == outbox.c.run, earlier.c.number < outbox.c.number)
    row = connection.execute(
        select(*(outbox.c[field.name] for field in fields(Message)))
        .where(
            outbox.c.due_at <= now,
            outbox.c.run.not_in(runs),
            outbox.c.owner.not_in(owners),
            ~is_behind,
        )
        .order_by(outbox.c.number)
        .limit(1)
    ).first()
    return None if row is None else Message(*row)


def remove(connection: Connection, message: Message) -> None:
    """Forget a message that was delivered, or given up."""
    connection.execute(delete(outbox).where(outbox.c.number == message.number))


def postpone(connection: Connection, message: Message, due_at: float) -> None:
    """Keep a message whose attempt failed until it is due again."""
    connection.execute(
        update(outbox)
        .where(outbox.c.number == message.number)
        .values(num_attempts=message.num_attempts + 1, due_at=due_at)
    )
