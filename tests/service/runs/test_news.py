"""A run's webhook hears of its output and logs now and then, after the start and before the end."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from src.service.runs.finish import RunEnds
from src.service.runs.live import LiveRun, LiveRuns
from src.service.runs.news import telling_news
from src.service.store.database import Database
from src.service.store.runs import Run, create_run
from src.service.store.schema import outbox

Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'service.db'}")
    yield opened
    opened.close()


def follow(
    database: Database,
    work: Callable[[LiveRun, Callable[[], Told]], Coroutine[Any, Any, None]],
    events: list[str] | None,
) -> Told:
    """Tell of a run while `work` runs it, end it, and return the (event, object)s, once each."""
    told: Told = []

    def take(connection: Any) -> None:
        for row in connection.execute(select(outbox).order_by(outbox.c.number)):
            told.append((row.event, json.loads(row.payload)))
        connection.execute(outbox.delete())

    def news() -> Told:
        database.write_now(take)
        return told

    async def run() -> None:
        values = {
            "kind": "prediction", "owner": "ann", "model": "a/b", "version": "c", "input": {},
            "base_url": "http://localhost", "webhook": "http://localhost/",
            "webhook_events": events,
        }  # fmt: skip
        row: Run = await database.write(create_run, values)
        live_runs = LiveRuns()
        live = live_runs.add(row)
        ends = RunEnds(database, live_runs)
        async with telling_news(database, row, live, seconds=0.3):
            live.log("seed 1\n")
            await asyncio.sleep(0.1)
            assert news() == []
            await ends.start(row.id)
            await work(live, news)
        await ends.end(row.id, "succeeded")
        live.push("late")
        await asyncio.sleep(0.5)
        news()

    asyncio.run(run())
    return told


def test_output_is_told_as_it_grows(database: Database):
    began = time.monotonic()

    async def work(live: LiveRun, news: Callable[[], Told]) -> None:
        for number in range(100):
            live.push(str(number))
            await asyncio.sleep(0.015)
            news()
        while len(news()[-1][1]["output"]) < 100:
            await asyncio.sleep(0.05)

    told = follow(database, work, None)
    outputs = [shown["output"] for event, shown in told if event == "output"]
    assert told[-1][0] == "completed"
    assert {event for event, _ in told} == {"output", "completed"}
    assert 3 <= len(outputs) <= (time.monotonic() - began) / 0.3 + 1
    assert outputs == sorted(outputs, key=len)
    assert outputs[-1] == [str(number) for number in range(100)]
    for event, shown in told[:-1]:
        assert (event, shown["status"], shown["completed_at"]) == ("output", "processing", None)
        assert shown["started_at"] is not None


def test_a_short_run_tells_of_its_output_too(database: Database):
    async def work(live: LiveRun, news: Callable[[], Told]) -> None:
        live.push("all of it")

    told = follow(database, work, None)
    assert [(event, shown["output"]) for event, shown in told] == [
        ("output", ["all of it"]),
        ("completed", ["all of it"]),
    ]


@pytest.mark.parametrize("events", [["logs"], ["output"], ["start"], ["completed"]])
def test_only_what_was_asked_for_is_told(database: Database, events: list[str]):
    async def work(live: LiveRun, news: Callable[[], Told]) -> None:
        live.log("line\n")
        live.push("text")
        await asyncio.sleep(0.1)

    assert [event for event, _ in follow(database, work, events)] == events
