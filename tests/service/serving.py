"""A service that answers over HTTP in this process, and does no work: its runs wait."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from src.service.app import make_app
from src.service.service import Service
from src.service.settings import ServiceSettings
from src.service.store.database import Database
from src.service.store.models import add_base_models
from src.service.store.tokens import add_token

OWNERS = ("ann", "bob")


@dataclass(frozen=True)
class Served:
    """The service, its address, and a client of each owner."""

    service: Service
    url: str
    ann: httpx.AsyncClient
    bob: httpx.AsyncClient


@asynccontextmanager
async def serving(
    folder: Path, *, database_url: str | None = None, **limits: Any
) -> AsyncIterator[Served]:
    """Serve at a free port, with limits of the settings."""
    url = database_url or f"sqlite:///{folder / 'service.db'}"
    database = Database(url)
    service = Service(ServiceSettings(data_dir=folder, database_url=url, **limits), database)
    database.write_now(add_base_models, service.settings.base_model)
    tokens = [database.write_now(add_token, owner) for owner in OWNERS]
    config = uvicorn.Config(make_app(service), port=0, lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    ann, bob = (
        httpx.AsyncClient(base_url=address, headers={"Authorization": f"Bearer {token}"})
        for token in tokens
    )
    try:
        async with ann, bob:
            yield Served(service, address, ann, bob)
    finally:
        server.should_exit = True
        await task
        database.close()
