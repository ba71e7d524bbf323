"""What the service has accepted it keeps, whatever happens to it, and for its owner alone."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from benchmarks.service.answers import GREEDY, answers_alone, prompts
from benchmarks.service.figures.crowd import crowd
from benchmarks.service.figures.kills import kill_under_load
from benchmarks.service.figures.streams import stream_at_once
from benchmarks.service.load import Load
from benchmarks.service.receiver import Told, receiving
from benchmarks.service.running import RunningService

NUM_TOKENS = 24
READY_SECONDS = 10.0
Found = TypeVar("Found")


@pytest.fixture(scope="module")
def answers(base_dir: Path) -> dict[str, str]:
    """What the engine alone says to some prompts."""
    texts = prompts(8)
    inputs = [{"prompt": text, "max_new_tokens": NUM_TOKENS, **GREEDY} for text in texts]
    return dict(zip(texts, answers_alone(str(base_dir), inputs), strict=True))


@contextmanager
def started(
    folder: Path, base_dir: Path, owners: list[str], **environment: str
) -> Iterator[RunningService]:
    service = RunningService(folder, str(base_dir), owners, **environment)
    service.start()
    try:
        yield service
    finally:
        service.end()


def requests_served(service: RunningService) -> list[int]:
    """Return how many each engine has answered, which it tells a moment after it is asked."""
    number = re.compile(r'engine_requests_served_total{engine="."} (\d+)')
    for _ in range(100):
        if found := number.findall(httpx.get(f"{service.address}/metrics").text):
            return [int(text) for text in found]
        time.sleep(0.1)
    return []


def under_load(
    service: RunningService,
    answers: dict[str, str],
    work: Callable[[Load, Told], Awaitable[Found]],
) -> Found:
    async def run() -> Found:
        with receiving() as (hook, told):
            load = Load(service, answers, hook, num_tokens=NUM_TOKENS)
            try:
                return await work(load, told)
            finally:
                await load.close()

    return asyncio.run(run())


def test_nothing_accepted_is_lost_when_the_service_is_killed(
    base_dir: Path, answers: dict[str, str], tmp_path: Path
):
    async def work(load: Load, told: Told):
        return await kill_under_load(service, load, told, number=5, pause=3, most_trainings=1)

    with started(tmp_path, base_dir, ["ann", "bob"]) as service:
        found = under_load(service, answers, work)
    assert found.ledger.problems == []
    assert max(found.ready) < READY_SECONDS
    assert found.ledger.counts()["predictions succeeded"] > 0


def test_all_that_a_crowd_asks_for_ends_right_and_is_seen_by_its_owner_alone(
    base_dir: Path, answers: dict[str, str], tmp_path: Path
):
    async def work(load: Load, told: Told):
        return await crowd(service, load, predictions=150, trainings=1)

    with started(tmp_path, base_dir, ["ann", "bob", "cid"], ENGINE_REPLICAS="2") as service:
        found = under_load(service, answers, work)
        streams = asyncio.run(stream_at_once(service, answers, num_tokens=NUM_TOKENS))
        served = requests_served(service)
    assert found.ledger.problems == []
    assert len(found.ledger.runs) == 151
    assert streams.wrong == []
    assert len(served) == 2
    assert all(served)
