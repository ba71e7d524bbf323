"""A file may be deleted while trainings use it: one that has not read it yet is told so."""

import json
import time
from collections.abc import Callable
from typing import Any

from tests.conftest import ROWS
from tests.service.attacks.conftest import BASE, Attacked

SECONDS = 60.0
"""Longer than anything that is waited for takes."""


def wait_for(is_there: Callable[[], Any]) -> Any:
    """Return what `is_there` returns as soon as it is true."""
    deadline = time.monotonic() + SECONDS
    while not (found := is_there()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_file_that_is_deleted_ends_only_the_training_that_has_not_read_it(attacked: Attacked):
    model = {"owner": "alice", "name": "bereft", "visibility": "private", "hardware": "cpu"}
    assert attacked.ask("POST", "/v1/models", owner="alice", json=model).ok
    rows = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    version = attacked.ask("GET", f"/v1/models/{BASE}").json()["latest_version"]["id"]

    def train() -> tuple[str, str]:
        """Return the id of a new training, and that of its file."""
        upload = {"content": ("d.jsonl", rows)}
        file = attacked.ask("POST", "/v1/files", owner="alice", files=upload).json()
        body = {
            "destination": "alice/bereft",
            "input": {"train_data": file["urls"]["get"], "max_steps": 60, "run_validation": False},
        }
        path = f"/v1/models/{BASE}/versions/{version}/trainings"
        return attacked.ask("POST", path, owner="alice", json=body).json()["id"], file["id"]

    def told(run: str) -> dict[str, Any]:
        return attacked.ask("GET", f"/v1/trainings/{run}", owner="alice").json()

    (running, read), (waiting, unread) = train(), train()
    wait_for(lambda: "step 1/" in told(running)["logs"])
    for file in (read, unread):
        assert attacked.ask("DELETE", f"/v1/files/{file}", owner="alice").status_code == 204
    ended = wait_for(lambda: (found := told(waiting))["completed_at"] and found)
    assert (ended["status"], ended["error"]) == ("failed", f"train_data: there is no file {unread}")
    ended = told(running)
    assert (ended["status"], ended["error"]) == ("succeeded", None)
