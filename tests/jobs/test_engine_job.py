"""The engine as a process: what is asked on its stdin is answered on its stdout, and that only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROWS
from tests.jobs.process import Job
from tests.serving.conftest import save_random_adapter

ENGINE = "src.jobs.engine"
GREEDY = {"temperature": 0, "repetition_penalty": 1, "seed": 1, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def weights_dir(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_random_adapter(base_dir, folder / "random", seed=3)
    return folder


@pytest.fixture(scope="module")
def engine(base_dir: Path, weights_dir: Path) -> Iterator[Job]:
    job = Job(ENGINE, BASE_MODEL=str(base_dir), WEIGHTS_DIR=str(weights_dir))
    ready = job.event("ready")
    assert ready["model"] == {
        "name": "tiny-llama", "revision": None, "max_seq_len": 256, "num_slots": 32,
        "chat_template": None, "generation_prompt": "",
    }  # fmt: skip
    yield job
    job.kill()


def ask(engine: Job, id: str, **inputs: Any) -> None:
    engine.send(do="predict", id=id, input={**GREEDY, **inputs})


def answer(engine: Job, id: str) -> str:
    end = engine.event("end", id=id)
    assert (end["status"], end["error"]) == ("succeeded", None)
    return "".join(message["text"] for message in engine.of(id, "output"))


def test_many_at_once_answer_what_each_answers_alone(engine: Job):
    prompts = [row["prompt"] for row in ROWS]
    alone = []
    for number, prompt in enumerate(prompts):
        ask(engine, f"alone-{number}", prompt=prompt)
        alone.append(answer(engine, f"alone-{number}"))
    for number, prompt in enumerate(prompts):
        ask(engine, f"beside-{number}", prompt=prompt)
    ended = {engine.event("end")["id"] for _ in prompts}
    assert ended == {f"beside-{number}" for number in range(len(prompts))}
    for number, text in enumerate(alone):
        pieces = engine.of(f"beside-{number}", "output")
        assert "".join(piece["text"] for piece in pieces) == text
        assert len(pieces) > 1
    order = [message["event"] for message in engine.messages if message.get("id") == "beside-0"]
    assert order == ["started", *["output"] * (len(order) - 2), "end"]


def test_metrics_come_with_the_end(engine: Job):
    ask(engine, "metrics", prompt="What?", logprobs=2, max_new_tokens=3, min_new_tokens=3)
    metrics = engine.event("end", id="metrics")["metrics"]
    assert metrics["output_token_count"] == 3
    assert len(metrics["logprobs"][0]) == 3
    engine.send(do="report")
    report = engine.event("report")["metrics"]
    assert report["requests_served"] == metrics["process"]["requests_served"]


def test_a_log_is_that_of_its_request(engine: Job):
    """What is printed on a thread of the pool, on the loop, and where others print too."""
    schema = '{"type": "array", "items": {"type": "integer"}, "minItems": 50}'
    ids = [f"log-{number}" for number in range(8)]
    for id in ids:
        ask(engine, id, prompt=f"I am {id}", seed=None, debug=True, json_schema=schema)
    for _ in ids:
        engine.event("end")
    for id in ids:
        log = "".join(message["text"] for message in engine.of(id, "log"))
        seed = engine.of(id, "end")[0]["metrics"]["seed"]
        seed_line, prompt_line, cut_line, cost_line = log.splitlines()
        assert seed_line == f"seed {seed}"
        assert f"I am {id}" in prompt_line
        assert cut_line.startswith("answer 1 of 1 is no whole JSON")
        assert f"'seed': {seed}" in cost_line
        assert log.endswith("\n")


def test_a_canceled_request_ends_and_the_others_go_on(engine: Job):
    """One that is answered, one that waits for a slot, one that has not begun."""
    long = {"max_new_tokens": 250, "min_new_tokens": 250}
    ids = [f"long-{number}" for number in range(40)]
    for id in ids:
        ask(engine, id, prompt="a", **long)
    engine.event("output", id=ids[0])
    ask(engine, "new", prompt="a", **long)
    canceled = {ids[0], ids[-1], "new"}
    for id in canceled:
        engine.send(do="cancel", id=id)
    ends = [engine.event("end") for _ in {*ids, "new"}]
    assert {end["id"] for end in ends if end["status"] == "canceled"} == canceled
    assert {end["status"] for end in ends} == {"canceled", "succeeded"}
    assert 0 < engine.of(ids[0], "end")[0]["metrics"]["output_token_count"] < 250
    assert engine.of(ids[-1], "output") == []
    engine.send(do="cancel", id=ids[1])  # too late
    ask(engine, "after cancels", prompt="What?")
    answer(engine, "after cancels")


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"top_p": 2}, "top_p: expected a number from 0 to 1, got 2.0"),
        ({"max_new_tokens": "9"}, "max_new_tokens: expected a whole number, found '9'"),
        ({"max_new_tokens": True}, "max_new_tokens: expected a whole number, found True"),
        ({"prompt": 3}, "prompt: expected text, found 3"),
        ({"debug": 1}, "debug: expected true or false, found 1"),
        ({"nope": 1}, "input: there is no nope; expected some of prompt, system_prompt, "),
        ({"replicate_weights": "none"}, "weights"),
    ],
)
def test_bad_input_is_one_sentence(engine: Job, inputs: dict[str, Any], sentence: str):
    ask(engine, sentence, **inputs)
    end = engine.event("end", id=sentence)
    assert (end["status"], end["refused"]) == ("failed", True)
    assert end["error"].startswith(sentence) or inputs.get("replicate_weights")
    assert "\n" not in end["error"]
    assert engine.of(sentence, "started") == []


def test_null_is_the_default(engine: Job):
    ask(engine, "null", prompt="What?", top_k=None, logprobs=None, num_outputs=1.0)
    answer(engine, "null")


def test_weights_are_named_by_path(engine: Job, weights_dir: Path):
    ask(engine, "bare", prompt="What is it?")
    ask(engine, "tuned", prompt="What is it?", replicate_weights="random")
    ends = {engine.event("end")["id"] for _ in range(2)}
    assert ends == {"bare", "tuned"}
    bare, tuned = ([m["text"] for m in engine.of(id, "output")] for id in ("bare", "tuned"))
    assert bare != tuned
    assert "adapter_was_loaded" in engine.of("tuned", "end")[0]["metrics"]


def test_noise_on_stdin_and_stdout_is_left_out(engine: Job):
    assert engine.process.stdin is not None
    engine.process.stdin.write(b'no JSON\n{"do": "nothing"}\n[1]\n')
    ask(engine, "after noise", prompt="What?")
    answer(engine, "after noise")


def test_the_end_of_stdin_ends_it(base_dir: Path):
    """While it gets ready too."""
    job = Job(ENGINE, BASE_MODEL=str(base_dir))
    assert job.close() == 0
    assert job.messages == []


def test_the_end_of_stdin_ends_answers(base_dir: Path):
    job = Job(ENGINE, BASE_MODEL=str(base_dir))
    job.event("ready")
    ask(job, "long", prompt="a", max_new_tokens=250, min_new_tokens=250)
    job.event("output", id="long")
    assert job.close() == 0
    assert job.of("long", "end") == []


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path):
    job = Job(ENGINE, BASE_MODEL=str(tmp_path))
    failed = job.event("failed")
    assert "\n" not in failed["error"]
    assert str(tmp_path) in failed["error"] or "config.json" in failed["error"]
    assert job.process.wait(10) == 1


def test_no_cancel_is_lost(engine: Job):
    """However close to the next token it comes."""
    for number in range(3):
        ids = [f"canceled-{number}-{n}" for n in range(16)]
        for id in ids:
            ask(engine, id, prompt="What?", min_new_tokens=240, max_new_tokens=240)
        engine.event("output", id=ids[-1])
        for id in ids:
            engine.send(do="cancel", id=id)
        assert [engine.event("end")["status"] for _ in ids] == ["canceled"] * 16


def test_the_process_ends_with_its_engine(base_dir: Path):
    job = Job("tests.jobs.dying_engine", BASE_MODEL=str(base_dir))
    try:
        job.event("ready")
        ask(job, "last", prompt="?")
        assert job.process.wait(60) == 1
    finally:
        job.kill()
