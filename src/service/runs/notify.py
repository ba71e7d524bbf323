"""Tells a run's webhook what has happened to it."""

import json
from typing import Any

from sqlalchemy import Connection

from src.service.replicate.objects import render_run
from src.service.store.outbox import enqueue
from src.service.store.runs import Run

DEFAULT_EVENTS = ("output", "completed")


def wants(run: Run, event: str) -> bool:
    """Whether a run's webhook asked for an event."""
    return bool(run.webhook) and event in (run.webhook_events or DEFAULT_EVENTS)


def notify(connection: Connection, run: Run, event: str, **shown: Any) -> None:
    """Queue a message to a run's webhook, if it asked for it; `shown` is what its row lacks."""
    if wants(run, event):
        body = json.dumps(render_run(run, **shown)).encode()
        enqueue(connection, run.id, event, run.webhook, body, owner=run.owner)
