"""A training as a process: its log, its metrics and its end are messages."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROWS
from tests.jobs.process import Job
from tests.training.processes import session_processes
from tests.training.runs import CURVE

TRAINING = "src.jobs.training"
LONG = {**CURVE, "num_train_epochs": 2000, "run_validation": False}


@pytest.fixture
def start(base_dir: Path, tmp_path: Path, write_rows) -> Iterator[Callable[..., Job]]:
    """Return a function that starts a training job on the usual rows."""
    data = write_rows(ROWS)
    jobs: list[Job] = []

    def make(environment: dict[str, str] | None = None, **inputs: Any) -> Job:
        job = Job(
            TRAINING,
            BASE_MODEL=str(base_dir),
            NUM_PROCESSES="1",
            TMPDIR=str(tmp_path),
            **(environment or {}),
        )
        jobs.append(job)
        job.send(
            do="train",
            input={"train_data": str(data), "lora_dropout": 0, **inputs},
            names={"train_data": "colours.jsonl"},
            output=str(tmp_path / "weights.tar"),
        )
        return job

    yield make
    for job in jobs:
        job.kill()


def check_nothing_is_left(tmp_path: Path) -> None:
    """Assert that no process of a run is there; the folder of a run is in its command line."""
    deadline = time.monotonic() + 5
    while session_processes(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert session_processes(str(tmp_path)) == []


def test_a_training_ends_with_weights_that_are_served(start, tmp_path: Path, base_dir: Path):
    job = start(**{**CURVE, "num_train_epochs": 30}, validation_prompt=ROWS[0]["prompt"])
    end = job.event("end")
    output = tmp_path / "weights.tar"
    assert end == {"event": "end", "status": "succeeded", "error": None, "weights": str(output)}
    assert job.process.wait(10) == 0
    records = [m["record"] for m in job.messages if m["event"] == "metric"]
    assert [record["step"] for record in records if "loss" in record][:10] == [*range(1, 11)]
    assert isinstance(records[-1]["sample"], str)
    log = "".join(m["text"] for m in job.messages if m["event"] == "log")
    assert all(m["text"].endswith("\n") for m in job.messages if m["event"] == "log")
    assert "step 90/90 | loss" in log
    assert "colours.jsonl" in log
    assert {m["event"] for m in job.messages} == {"log", "metric", "end"}
    assert list(tmp_path.glob(".weights*")) == []
    check_nothing_is_left(tmp_path)
    engine = Job("src.jobs.engine", BASE_MODEL=str(base_dir), WEIGHTS_DIR=str(tmp_path))
    engine.event("ready")
    asked = {"prompt": ROWS[0]["prompt"], "temperature": 0, "repetition_penalty": 1}
    engine.send(do="predict", id="a", input={**asked, "replicate_weights": "weights.tar"})
    assert engine.event("end")["status"] == "succeeded"
    assert "".join(m["text"] for m in engine.of("a", "output")) == ROWS[0]["completion"]
    assert engine.close() == 0


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"lora_rank": 0}, "lora_rank: expected a whole number from 1 to 1,024, got 0"),
        ({"nope": 1}, "input: there is no nope; expected some of train_data, num_train_epochs, "),
        ({"resume_from": "auto"}, "resume_from: the server has no CHECKPOINT_DIR"),
        ({"train_data": "/none"}, "train_data: there is no file none"),
    ],
)
def test_bad_input_is_one_sentence(start, inputs: dict[str, Any], sentence: str):
    job = start(**inputs)
    end = job.event("end")
    assert (end["status"], end["weights"]) == ("failed", None)
    assert end["error"].startswith(sentence)
    assert job.process.wait(10) == 1


def test_a_bad_file_goes_by_the_users_name(start, write_rows):
    write_rows([*ROWS, {"prompt": 7}])
    end = start().event("end")
    assert end["status"] == "failed"
    assert f"colours.jsonl, line {len(ROWS) + 1}" in end["error"]


def test_cancel_ends_all_ranks(start, tmp_path: Path):
    job = start(**LONG)
    job.event("metric")
    assert session_processes(str(tmp_path))
    job.send(do="cancel")
    end = job.event("end")
    assert (end["status"], end["error"], end["weights"]) == ("canceled", None, None)
    check_nothing_is_left(tmp_path)
    assert not (tmp_path / "weights.tar").exists()


def test_cancel_before_the_training_has_come_is_an_end_too(base_dir: Path):
    job = Job(TRAINING, BASE_MODEL=str(base_dir))
    try:
        job.send(do="cancel")
        end = job.event("end")
        assert (end["status"], end["error"], end["weights"]) == ("canceled", None, None)
        assert job.process.wait(60) == 1
    finally:
        job.kill()


def test_cancel_keeps_the_adapter_if_asked(start, tmp_path: Path):
    job = start({"CHECKPOINT_DIR": str(tmp_path / "kept")}, **LONG, save_on_cancel=True)
    job.event("metric")
    job.send(do="cancel")
    assert job.event("end")["status"] == "canceled"
    assert list((tmp_path / "kept").glob("run-*/stopped-step-*"))


@pytest.mark.parametrize("is_killed", [True, False])
def test_nothing_outlives_the_job_or_its_stdin(start, tmp_path: Path, *, is_killed: bool):
    job = start(**LONG)
    job.event("metric")
    if is_killed:
        os.kill(job.process.pid, signal.SIGKILL)
    else:
        job.close()
    check_nothing_is_left(tmp_path)


def test_a_killed_training_goes_on_from_its_checkpoint(start, tmp_path: Path):
    asked = {**CURVE, "checkpoint_seconds": 0, "resume_from": "auto", "run_validation": False}
    environment = {"CHECKPOINT_DIR": str(tmp_path / "kept")}
    job = start(environment, **asked)
    job.wait_for(lambda message: "checkpoint: run-" in message.get("text", ""))
    job.kill()
    check_nothing_is_left(tmp_path)
    again = start(environment, **asked)
    resumed = again.wait_for(lambda message: "resumed after step " in message.get("text", ""))
    assert not resumed["text"].startswith("resumed after step 0")
    assert again.event("end")["status"] == "succeeded"


def test_the_end_of_stdin_leaves_a_checkpoint_of_the_last_step(start, tmp_path: Path):
    asked = {**LONG, "resume_from": "auto"}
    environment = {"CHECKPOINT_DIR": str(tmp_path / "kept")}
    job = start(environment, **asked)
    job.wait_for(lambda message: message.get("record", {}).get("step", 0) >= 3)
    job.close()
    assert job.messages[-1]["event"] != "end"
    check_nothing_is_left(tmp_path)
    last = max(m["record"]["step"] for m in job.messages if m["event"] == "metric")
    again = start(environment, **asked)
    resumed = again.wait_for(lambda message: "resumed after step " in message.get("text", ""))
    assert int(resumed["text"].split("resumed after step ")[1].split()[0]) >= last
