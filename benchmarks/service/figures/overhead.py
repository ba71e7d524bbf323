"""What the service's own process costs beside the engine."""

import asyncio
from typing import Literal

import httpx

from benchmarks.service.answers import GREEDY
from benchmarks.service.load import MODEL
from benchmarks.service.running import RunningService

INPUTS = {"prompt": "def add(a, b):", "max_new_tokens": 8, **GREEDY}
CLIENTS = 8
Way = Literal["answer waited for", "answer streamed"]


async def cpu_milliseconds(service: RunningService, way: Way, number: int) -> float:
    """Return the processor time of each of so many short predictions, a few at once."""
    async with service.async_client("ann") as client:
        await _predict(client, way)
        before = service.cpu_seconds()
        slots = asyncio.Semaphore(CLIENTS)

        async def one() -> None:
            async with slots:
                await _predict(client, way)

        await asyncio.gather(*(one() for _ in range(number)))
        return 1000 * (service.cpu_seconds() - before) / number


async def _predict(client: httpx.AsyncClient, way: Way) -> None:
    waits = {"Prefer": "wait"} if way == "answer waited for" else {}
    path = f"/v1/models/{MODEL}/predictions"
    answer = await client.post(path, json={"input": INPUTS}, headers=waits)
    run = answer.raise_for_status().json()
    if way == "answer streamed":
        shown = (await client.get(run["urls"]["stream"])).text
        assert "event: done" in shown, shown
    else:
        assert run["status"] == "succeeded", run
