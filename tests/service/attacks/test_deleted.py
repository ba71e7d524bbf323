"""What a run uses cannot be deleted from below it."""

import json

from tests.conftest import ROWS
from tests.service.attacks.conftest import BASE, Attacked


def test_a_model_that_a_training_is_to_fill_stays(attacked: Attacked):
    model = {"owner": "alice", "name": "filled", "visibility": "private", "hardware": "cpu"}
    assert attacked.ask("POST", "/v1/models", owner="alice", json=model).ok
    rows = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    file = attacked.ask("POST", "/v1/files", owner="alice", files={"content": ("d.jsonl", rows)})
    version = attacked.ask("GET", f"/v1/models/{BASE}").json()["latest_version"]["id"]
    inputs = {"train_data": file.json()["urls"]["get"], "num_train_epochs": 1000}
    path = f"/v1/models/{BASE}/versions/{version}/trainings"
    body = {"destination": "alice/filled", "input": inputs}
    training = attacked.ask("POST", path, owner="alice", json=body).json()
    refused = attacked.ask("DELETE", "/v1/models/alice/filled", owner="alice")
    assert refused.status_code == 409, refused.text
    path = f"/v1/trainings/{training['id']}/cancel"
    for _ in range(2):
        canceled = attacked.ask("POST", path, owner="alice").json()
        assert canceled["status"] == "canceled"
    assert attacked.ask("DELETE", "/v1/models/alice/filled", owner="alice").status_code == 204
