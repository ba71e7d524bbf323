"""Files, jobs and models of a real service: from a file of calls to a model that makes them."""

import base64
import json
import time
from typing import Any

import pytest

from tests.service.openai.conftest import ASKED, LEARNED, TOOLS, Api

ROW = json.dumps({"messages": [*ASKED, LEARNED], "tools": TOOLS})
ROWS = f"{ROW}\n".encode() * 16
ENDS = ("succeeded", "failed", "cancelled")
FAST = {
    "n_epochs": 6,
    "batch_size": 4,
    "learning_rate_multiplier": 200,
    "lora_rank": 16,
    "num_validation_samples": 1,
}


def upload(api: Api, content: bytes = ROWS, **fields: Any) -> dict[str, Any]:
    form = {"purpose": "fine-tune", **fields}
    answer = api.ask("POST", "/files", data=form, files={"file": ("rows.jsonl", content)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def create(api: Api, *, token: str | None = None, **fields: Any) -> Any:
    return api.ask("POST", "/fine_tuning/jobs", json={"model": api.model, **fields}, token=token)


@pytest.fixture(scope="module")
def job(api: Api) -> dict[str, Any]:
    """A job that has succeeded."""
    made = create(
        api,
        training_file=upload(api)["id"],
        suffix="caller",
        metadata={"of": "tests"},
        method={"type": "supervised", "supervised": {"hyperparameters": FAST}},
    )
    assert made.status_code == 200, made.text
    job = made.json()
    assert (job["object"], job["fine_tuned_model"]) == ("fine_tuning.job", None)
    deadline = time.monotonic() + 300
    while job["status"] not in ENDS:
        assert time.monotonic() < deadline
        time.sleep(0.2)
        job = api.ask("GET", f"/fine_tuning/jobs/{job['id']}").json()
    assert job["status"] == "succeeded", job["error"]
    return job


def test_what_was_learned_comes_back_in_its_parts(api: Api, job: dict[str, Any]):
    asked = {"model": job["fine_tuned_model"], "tools": TOOLS, "temperature": 0, "max_tokens": 200}
    answer = api.chat(**asked).json()["choices"][0]
    message, (call,) = answer["message"], answer["message"]["tool_calls"]
    assert call["function"] == LEARNED["tool_calls"][0]["function"]
    assert message["content"] == LEARNED["content"]
    assert message["reasoning_content"] == LEARNED["reasoning_content"]
    assert answer["finish_reason"] == "tool_calls"
    streamed = api.chat(**asked, stream=True)
    lines = [line.removeprefix(b"data: ") for line in streamed.iter_lines() if line][:-1]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
    for name in ("content", "reasoning_content"):
        assert "".join(delta.get(name) or "" for delta in deltas) == message[name]
    pieces = [delta["tool_calls"][0]["function"] for delta in deltas if "tool_calls" in delta]
    assert "".join(piece["arguments"] for piece in pieces) == call["function"]["arguments"]


def test_a_job_tells_how_it_went(api: Api, job: dict[str, Any]):
    assert job["fine_tuned_model"].startswith(f"ft:{api.model}:alice:caller:")
    assert job["hyperparameters"]["n_epochs"] == 6
    assert job["trained_tokens"] > 1000
    path = f"/fine_tuning/jobs/{job['id']}"
    events = []
    while True:
        after = {"after": events[-1]["id"]} if events else {}
        page = api.ask("GET", f"{path}/events", params={"limit": 7, **after}).json()
        events += page["data"]
        if not page["has_more"]:
            break
    assert len({event["id"] for event in events}) == len(events) > 20
    times = [event["created_at"] for event in events]
    assert times == sorted(times, reverse=True)
    losses = [event["data"]["train_loss"] for event in events if event["type"] == "metrics"]
    assert losses[0] < losses[-1]
    (checkpoint,) = api.ask("GET", f"{path}/checkpoints").json()["data"]
    assert checkpoint["fine_tuned_model_checkpoint"] == job["fine_tuned_model"]
    (result,) = job["result_files"]
    assert api.ask("GET", f"/files/{result}").json()["purpose"] == "fine-tune-results"
    table = base64.b64decode(api.ask("GET", f"/files/{result}/content").content).decode()
    assert table == api.ask("GET", f"/files/{result}/content?format=csv").text
    assert table.startswith("step,train_loss,")
    assert len(table.splitlines()) > 20


def test_a_model_goes_by_each_of_its_names(api: Api, job: dict[str, Any]):
    listed = [model["id"] for model in api.ask("GET", "/models").json()["data"]]
    assert listed[0] == api.model
    assert {job["fine_tuned_model"], "llama-2-7b-chat"} <= set(listed)
    model = api.ask("GET", f"/models/{job['fine_tuned_model']}").json()
    assert (model["object"], model["owned_by"]) == ("model", "alice")
    texts = {
        api.chat(model=name, temperature=0, max_tokens=20).json()["choices"][0]["message"][
            "content"
        ]
        for name in (job["fine_tuned_model"], "alice/caller-tuned")
    }
    assert len(texts) == 1
    base = [api.chat(model=name, max_tokens=1) for name in (api.model, "meta/llama-2-7b-chat")]
    assert [answer.json()["model"] for answer in base] == [api.model, api.model]


def test_nothing_is_seen_by_another_owner(api: Api, job: dict[str, Any]):
    file = upload(api)
    for method, path in (
        ("GET", f"/files/{file['id']}"),
        ("GET", f"/files/{file['id']}/content"),
        ("DELETE", f"/files/{file['id']}"),
        ("GET", f"/files/{job['result_files'][0]}/content"),
        ("GET", f"/fine_tuning/jobs/{job['id']}"),
        ("GET", f"/fine_tuning/jobs/{job['id']}/events"),
        ("GET", f"/fine_tuning/jobs/{job['id']}/checkpoints"),
        ("POST", f"/fine_tuning/jobs/{job['id']}/cancel"),
        ("GET", f"/models/{job['fine_tuned_model']}"),
        ("DELETE", f"/models/{job['fine_tuned_model']}"),
        ("GET", "/models/alice/caller-tuned"),
    ):
        answer = api.ask(method, path, token=api.stranger)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["message"]
    body = {"model": job["fine_tuned_model"], "messages": ASKED}
    asked = api.ask("POST", "/chat/completions", json=body, token=api.stranger)
    assert asked.json()["error"]["code"] == "model_not_found"
    assert create(api, training_file=file["id"], token=api.stranger).status_code == 400
    for path in ("/files", "/fine_tuning/jobs"):
        assert api.ask("GET", path, token=api.stranger).json()["data"] == []
    names = [model["id"] for model in api.ask("GET", "/models", token=api.stranger).json()["data"]]
    assert job["fine_tuned_model"] not in names


def test_jobs_are_listed_page_by_page(api: Api, job: dict[str, Any]):
    made = [create(api, training_file=upload(api)["id"], metadata={"n": f"{n}"}) for n in range(2)]
    for answer in made:
        canceled = api.ask("POST", f"/fine_tuning/jobs/{answer.json()['id']}/cancel").json()
        assert canceled["status"] == "cancelled"
    expected = [made[1].json()["id"], made[0].json()["id"], job["id"]]
    listed: list[str] = []
    while True:
        after = {"after": listed[-1]} if listed else {}
        page = api.ask("GET", "/fine_tuning/jobs", params={"limit": 1, **after}).json()
        listed += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
    assert listed == expected
    found = api.ask("GET", "/fine_tuning/jobs", params={"metadata[n]": "0"}).json()["data"]
    assert [one["id"] for one in found] == expected[1:2]
    again = api.ask("POST", f"/fine_tuning/jobs/{expected[0]}/cancel")
    assert (again.status_code, again.json()["error"]["code"]) == (400, "invalid_job_state")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "gpt-4o-mini"}, "model"),
        ({"training_file": "file-nothing"}, "training_file"),
        ({"training_file": None}, "training_file"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"method": {"type": "dpo"}}, "method.type"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"epochs": 1}}, "hyperparameters.epochs"),
        ({"hyperparameters": {"lora_rank": "big"}}, "lora_rank"),
        ({"integrations": [{"type": "wandb"}]}, "integrations"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_a_job_cannot_be_made_of_is_named(api: Api, fields: dict[str, Any], param: str):
    answer = create(api, **{"training_file": upload(api)["id"], **fields})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param


def test_a_bad_line_is_named_before_anything_runs(api: Api):
    bad = upload(api, ROWS + b'{"messages": [{"role": "user"}]}\n')
    error = create(api, training_file=bad["id"]).json()["error"]
    assert (error["param"], error["code"]) == ("training_file", "invalid_training_file")
    assert "rows.jsonl" in error["message"]
    assert "line 17" in error["message"]


def test_files_come_back_byte_for_byte_and_go(api: Api):
    content = bytes(range(256)) * 9000
    file = upload(api, content, purpose="user_data", **{"expires_after[seconds]": "3600"})
    assert (file["bytes"], file["expires_at"] - file["created_at"]) == (len(content), 3600)
    assert api.ask("GET", f"/files/{file['id']}/content").content == content
    listed = api.ask("GET", "/files", params={"purpose": "user_data"}).json()
    assert [one["id"] for one in listed["data"]] == [file["id"]]
    assert api.ask("DELETE", f"/files/{file['id']}").json()["deleted"] is True
    assert api.ask("GET", f"/files/{file['id']}").status_code == 404
    for form in ({"purpose": "pleasure"}, {}):
        refused = api.ask("POST", "/files", data=form, files={"file": ("a", b"x")})
        assert refused.json()["error"]["param"] == "purpose"


def test_a_model_that_is_deleted_answers_no_more(api: Api, job: dict[str, Any]):
    name = job["fine_tuned_model"]
    assert api.ask("DELETE", f"/models/{name}").json()["deleted"] is True
    assert api.chat(model=name).status_code == 404
    assert api.ask("DELETE", f"/models/{api.model}").status_code == 403
