"""The end of a run is what clients of an iterator model can join."""

import asyncio
from pathlib import Path

import pytest

from src.service.runs.finish import RunEnds
from src.service.runs.live import LiveRuns
from src.service.store.database import Database
from src.service.store.runs import Run, create_run


@pytest.mark.parametrize(
    ("status", "chunks", "output"),
    [
        ("succeeded", ["a", "b"], ["a", "b"]),
        ("succeeded", [], []),
        ("canceled", ["a"], ["a"]),
        ("failed", [], None),
    ],
)
def test_an_answer_without_text_is_an_empty_list(
    tmp_path: Path, status: str, chunks: list[str], output: list[str] | None
):
    database = Database(f"sqlite:///{tmp_path / 'service.db'}")
    values = {"kind": "prediction", "owner": "ann", "model": "meta/m", "version": "v", "input": {}}

    async def end() -> Run:
        row = await database.write(create_run, {**values, "base_url": "http://x"})
        live_runs = LiveRuns()
        live = live_runs.add(row)
        for chunk in chunks:
            live.push(chunk)
        return await RunEnds(database, live_runs).end(row.id, status)

    try:
        assert asyncio.run(end()).output == output
    finally:
        database.close()
