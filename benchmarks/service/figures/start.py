"""From the command to the first prediction of the real model."""

import time
from pathlib import Path

from benchmarks.service.load import MODEL
from benchmarks.service.running import RunningService
from benchmarks.shapes import REAL_MODEL


def seconds_to_first_prediction(folder: Path, rounds: int) -> list[float]:
    """Return the seconds of each start; the model lies in the cache."""
    service = RunningService(folder / "start", REAL_MODEL, ["ann"])
    return [_start(service) for _ in range(rounds + 1)][1:]


def _start(service: RunningService) -> float:
    started = time.monotonic()
    try:
        service.start()
        inputs = {"prompt": "What is the capital of France?", "max_new_tokens": 1}
        with service.client("ann") as client:
            answer = client.post(
                f"/v1/models/{MODEL}/predictions",
                json={"input": inputs},
                headers={"Prefer": "wait"},
            )
        assert answer.json()["status"] == "succeeded", answer.text
        return time.monotonic() - started
    finally:
        service.end()
