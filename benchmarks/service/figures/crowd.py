"""Predictions and trainings of several owners at once, some of them canceled: all end right."""

import asyncio
import random
import time
from dataclasses import dataclass
from itertools import permutations

from benchmarks.service.ledger import Ledger
from benchmarks.service.load import Load
from benchmarks.service.running import RunningService
from benchmarks.service.strangers import answers_to_strangers, things_of

CANCELED = 0.05
CLIENTS_OF_OWNER = 4


@dataclass
class Crowd:
    """What came of it."""

    ledger: Ledger
    queued_seconds: float
    """Until all were accepted."""
    seconds: float
    """Until all had ended."""


async def crowd(
    service: RunningService, load: Load, *, predictions: int, trainings: int, seed: int = 0
) -> Crowd:
    """Queue so many runs of all owners; return when each has ended and is checked."""
    rng, owners, started = random.Random(f"crowd {seed}"), list(service.tokens), time.monotonic()
    await load.prepare()
    asked = [load.train] * trainings + [load.predict] * predictions
    rng.shuffle(asked)
    waiting = iter(list(enumerate(asked)))

    async def ask() -> None:
        for number, create in waiting:
            made = await create(owners[number % len(owners)])
            if made is None:
                load.ledger.problems.append("a run was not accepted")
            elif rng.random() < CANCELED:
                await load.cancel(made)

    await asyncio.gather(*(ask() for _ in range(CLIENTS_OF_OWNER * len(owners))))
    queued_seconds = time.monotonic() - started
    await load.wait()
    seconds = time.monotonic() - started
    load.ledger.check_ends(num_kills=0)
    await load.check_bytes()
    load.ledger.problems += await asyncio.to_thread(ask_as_strangers, service)
    await load.wait()  # and nothing that they asked for has been done
    return Crowd(load.ledger, queued_seconds, seconds)


def ask_as_strangers(service: RunningService) -> list[str]:
    """Return what owners were told of each other's things."""
    clients = {owner: service.client(owner) for owner in service.tokens}
    things = {owner: things_of(client, owner) for owner, client in clients.items()}
    found = [
        told
        for asker, owner in permutations(clients, 2)
        for told in answers_to_strangers(clients[asker], things[owner])
    ]
    for client in clients.values():
        client.close()
    return found
