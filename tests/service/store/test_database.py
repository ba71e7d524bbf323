"""What is written together succeeds or fails alone."""

import asyncio

import pytest
from sqlalchemy import Connection

from src.service.store.database import Database
from src.service.store.ids import new_id
from src.service.store.runs import create_run, find_run


def create(connection: Connection, run_id: str, *, fails: bool) -> str:
    values = {"id": run_id, "kind": "prediction", "owner": "ann", "model": "a/b", "version": "v"}
    create_run(connection, {**values, "input": {}, "base_url": "http://x"})
    if fails:
        raise LookupError(run_id)
    return run_id


@pytest.mark.parametrize("number", [1, 30])
def test_a_write_that_fails_leaves_nothing_and_the_others_stay(database: Database, number: int):
    ids = {new_id(): index % 3 == 0 for index in range(number)}

    async def write_all() -> list[str | BaseException]:
        writes = (
            database.write(lambda c, i=id, f=fails: create(c, i, fails=f))
            for id, fails in ids.items()
        )
        return await asyncio.gather(*writes, return_exceptions=True)

    for (id, fails), result in zip(ids.items(), asyncio.run(write_all()), strict=True):
        assert isinstance(result, LookupError) if fails else result == id
        assert (database.read_now(find_run, id) is None) == fails
