"""Webhook messages that wait to be sent."""

from sqlalchemy import Column, Connection, LargeBinary, MetaData, String, Table, Text


def outbox_table(metadata: MetaData) -> Table:
    """Return the table."""
    return Table(
        "outbox",
        metadata,
        Column("run", String),
        Column("event", String),
        Column("url", Text),
        Column("body", LargeBinary),
    )


def enqueue(connection: Connection, run_id: str, event: str, url: str, body: bytes) -> None:
    """Queue a message."""
