"""Sends webhooks."""

import asyncio
from typing import Any


class WebhookSender:
    """Sends what is in the outbox."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        self._parts = parts, settings

    async def run(self) -> None:
        """Send until this is canceled."""
        await asyncio.Event().wait()
