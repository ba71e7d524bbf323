"""How long a client waits until its prediction is accepted, with more and more rows behind it."""

import time
from collections.abc import Sequence

import httpx
from sqlalchemy import Connection, func, insert, select

from benchmarks.service.load import MODEL
from benchmarks.service.running import RunningService
from src.service.store.database import Database
from src.service.store.ids import new_id
from src.service.store.schema import runs
from src.service.times import now_text

NUM_CREATES = 200
INPUTS = {"prompt": "def add(a, b):", "max_new_tokens": 1, "temperature": 0}


def milliseconds_to_create(service: RunningService, sizes: Sequence[int]) -> dict[int, list[float]]:
    """Return how long each of some creates took, by the number of rows; `service` does not run."""
    found: dict[int, list[float]] = {}
    for size in sizes:
        _fill(service, size)
        service.start()
        try:
            with service.client("ann") as client:
                client.post(
                    f"/v1/models/{MODEL}/predictions",
                    json={"input": INPUTS},
                    headers={"Prefer": "wait"},
                )
                found[size] = [_create(client) for _ in range(NUM_CREATES)]
        finally:
            service.end()
    return found


def _create(client: httpx.Client) -> float:
    started = time.perf_counter()
    answer = client.post(f"/v1/models/{MODEL}/predictions", json={"input": INPUTS})
    assert answer.status_code == 201, answer.text
    return 1000 * (time.perf_counter() - started)


def _fill(service: RunningService, size: int) -> None:
    """Add ended predictions of an owner until there are so many rows."""
    database = Database(service.database_url)
    row = {
        "kind": "prediction", "owner": "ann", "model": MODEL, "version": "0" * 64, "metrics": {},
        "status": "succeeded", "input": INPUTS, "output": ["a", "b"], "logs": "seed 1\n",
        "created_at": now_text(), "started_at": now_text(), "completed_at": now_text(),
        "base_url": service.address, "capability": "0" * 48, "bytes": 100,
    }  # fmt: skip
    rows = [{**row, "id": new_id()} for _ in range(size)]
    database.write_now(
        lambda connection: connection.execute(insert(runs), rows[: size - _num_rows(connection)])
    )
    database.close()


def _num_rows(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(runs)).scalar_one()
