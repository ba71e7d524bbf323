"""The service is killed at random points while it is used: what it has accepted is kept."""

import asyncio
import random
import time
from dataclasses import dataclass, field

from benchmarks.service.ledger import Ledger
from benchmarks.service.load import Load
from benchmarks.service.receiver import Told
from benchmarks.service.running import RunningService, marked

GONE_SECONDS = 30.0
WEBHOOK_SECONDS = 60.0


@dataclass
class Kills:
    """What came of it."""

    ledger: Ledger
    ready: list[float] = field(default_factory=list)
    """Seconds from each start to the first answer."""
    gone: list[float] = field(default_factory=list)
    """Seconds from each kill until no process of that service was left."""


async def kill_under_load(
    service: RunningService, load: Load, told: Told, *, number: int, pause: float,
    most_trainings: int, seed: int = 0,
) -> Kills:  # fmt: skip
    """Kill a running service so often, each time up to `pause` seconds after it was ready.

    Returns when all that was accepted has ended and is checked; what is wrong is in the ledger.
    """
    rng, kills, stop = random.Random(f"kills {seed}"), Kills(load.ledger), asyncio.Event()
    await load.prepare()
    owners = [
        asyncio.create_task(load.act(owner, stop, most_trainings=most_trainings))
        for owner in service.tokens
    ]
    watchers = []
    for _ in range(number):
        await asyncio.sleep(rng.uniform(0, pause))
        mark = service.mark
        await asyncio.to_thread(service.kill)
        watchers.append(asyncio.create_task(_until_gone(mark)))
        kills.ready.append(await asyncio.to_thread(service.start))
    stop.set()
    await asyncio.gather(*owners)
    for seconds in await asyncio.gather(*watchers):
        kills.gone.append(seconds)
        if seconds >= GONE_SECONDS:
            load.ledger.problems.append(f"a process was left {seconds:.0f} s after a kill")
    await load.wait()
    load.ledger.check_ends(num_kills=number)
    await load.check_bytes()
    await _wait_for_webhooks(load.ledger, told)
    load.ledger.check_webhooks(told)
    return kills


async def _until_gone(mark: str) -> float:
    started = time.monotonic()
    while await asyncio.to_thread(marked, mark) and time.monotonic() < started + GONE_SECONDS:
        await asyncio.sleep(0.2)
    return time.monotonic() - started


async def _wait_for_webhooks(ledger: Ledger, told: Told) -> None:
    deadline = time.monotonic() + WEBHOOK_SECONDS
    waiting = {id for id, run in ledger.runs.items() if run.webhook}
    while waiting and time.monotonic() < deadline:
        waiting = {id for id in waiting if not any(body["completed_at"] for body in told[id])}
        await asyncio.sleep(0.2)
