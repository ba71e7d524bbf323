"""From a data file to an answering model, through Cog's real server, as a user does it."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import torch

from src.cli.server import running_server
from tests.conftest import ROWS
from tests.training.processes import session_processes

ROOT = Path(__file__).resolve().parents[1]
GREEDY = {"temperature": 0, "repetition_penalty": 1, "top_p": 1, "seed": 0, "max_new_tokens": 40}
MEMBERS = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "metrics.jsonl",
    "report.html",
    "training.json",
]


def data_url(content: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(content).decode()


def jsonl(rows: list) -> str:
    return data_url("".join(json.dumps(row) + "\n" for row in rows).encode())


@pytest.fixture(scope="module", autouse=True)
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the trainings of this module lie: its name is in the commands of their processes."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def trainings(base_dir: Path) -> Iterator[str]:
    os.environ["BASE_MODEL"] = str(base_dir)
    with running_server("train") as address:
        yield f"{address}/trainings"


@pytest.fixture(scope="module")
def archive(trainings: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of one training through POST /trainings."""
    inputs = {
        "train_data": jsonl(ROWS),
        "num_train_epochs": 40,
        "learning_rate": 0.01,
        "lora_dropout": 0,
        "train_batch_size": 8,
        "run_validation": False,
    }
    answer = requests.post(trainings, json={"input": inputs}, timeout=300).json()
    assert answer["status"] == "succeeded", answer
    assert "step 120/120 | loss " in answer["logs"]
    assert len(answer["metrics"]["train"]["loss"]) > 50
    path = tmp_path_factory.mktemp("weights") / "weights.tar"
    path.write_bytes(base64.b64decode(answer["output"]["weights"].partition(",")[2]))
    return path


NUM_READERS = 8


@pytest.fixture(scope="module", params=["Predictor", "ConcurrentPredictor"])
def predictions(request, base_dir: Path, archive: Path) -> Iterator[str]:
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BASE_MODEL", str(base_dir))
            patch.setenv("WEIGHTS_DIR", str(archive.parent))
            patch.setenv("COG_PREDICT_TYPE_STUB", f"predict.py:{request.param}")
            if request.param == "ConcurrentPredictor":
                patch.setenv("COG_MAX_CONCURRENCY", str(NUM_READERS))
            address = stack.enter_context(running_server("predict"))
        yield f"{address}/predictions"


@pytest.fixture
def predictor(request) -> str:
    """The name of the predictor that this test meets."""
    return request.node.callspec.params["predictions"]


def ask(predictions: str, prompt: str, **inputs) -> dict:
    return post(predictions, {"prompt": prompt, **GREEDY, **inputs}).json()


def post(url: str, inputs: dict, **options) -> requests.Response:
    return send(requests.post, url, {"input": inputs}, **options)


def send(method: Callable[..., requests.Response], url: str, body: dict, **options):
    """Send a request; Cog's one slot is free only a moment after the last answer."""
    for _ in range(100):
        answer = method(url, json=body, timeout=120, **options)
        if answer.status_code != 409:
            return answer
        time.sleep(0.1)
    raise TimeoutError("the slot stays busy")


def text_of(answer: dict) -> str:
    assert answer["status"] == "succeeded", answer
    return "".join(answer["output"])


def test_the_archive_holds_what_the_contract_says(archive: Path, base_dir: Path):
    with tarfile.open(archive) as tar:
        assert tar.getnames() == MEMBERS
        texts = {name: tar.extractfile(name).read() for name in MEMBERS}
    manifest = json.loads(texts["training.json"])
    assert manifest["base_model"] == "tiny-llama"
    assert manifest["prompt_template"] == "{prompt}\n"
    assert manifest["data"]["train"]["examples"] == 24
    assert manifest["settings"]["num_train_epochs"] == 40
    assert manifest["train_loss"] < 1.5
    assert b"<svg" in texts["report.html"]
    for text in texts.values():
        assert str(base_dir.parent).encode() not in text
        assert b"/tmp/" not in text


def test_trained_completions_come_back_and_are_pefts(predictions, archive, base_dir, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_dir), tmp_path)
    num_right = 0
    for row in ROWS:
        found = text_of(ask(predictions, row["prompt"], replicate_weights=archive.name))
        ids = [tokenizer.bos_token_id, *tokenizer.encode(row["prompt"] + "\n")]
        output = model.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=40, do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        reply = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        assert found == reply
        num_right += found == row["completion"]
    assert num_right == len(ROWS)


def test_each_request_gets_its_own_weights(predictions: str, archive: Path):
    prompt = ROWS[3]["prompt"]
    bare = text_of(ask(predictions, prompt))
    tuned = text_of(ask(predictions, prompt, replicate_weights=data_url(archive.read_bytes())))
    assert tuned == ROWS[3]["completion"] != bare
    assert text_of(ask(predictions, prompt)) == bare
    refused = ask(predictions, prompt, replicate_weights=data_url(b"<html>no</html>"))
    assert refused["status"] == "failed"
    assert "HTML" in refused["error"]
    assert text_of(ask(predictions, prompt)) == bare
    assert text_of(ask(predictions, prompt, replicate_weights=archive.name)) == tuned


@pytest.mark.parametrize("kind", ["path", "url"])
def test_weights_of_the_container(base_dir: Path, archive: Path, kind: str):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    def handler(*args):
        return Quiet(*args, directory=str(archive.parent))

    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/weights.tar"
    os.environ.update(BASE_MODEL=str(base_dir), COG_WEIGHTS=url if kind == "url" else str(archive))
    with running_server("predict") as address:
        for row in ROWS[:2]:
            assert text_of(ask(f"{address}/predictions", row["prompt"])) == row["completion"]
    server.shutdown()


def stream(predictions: str, prompt: str, **inputs) -> Iterator[tuple[str, dict, float]]:
    headers = {"Accept": "text/event-stream"}
    inputs = {"prompt": prompt, **GREEDY, **inputs}
    with post(predictions, inputs, headers=headers, stream=True) as answer:
        name = ""
        for line in answer.iter_lines(chunk_size=1):
            if line.startswith(b"event:"):
                name = line[6:].strip().decode()
            elif line.startswith(b"data:"):
                yield name, json.loads(line[5:]), time.monotonic()


def test_the_text_streams_while_it_is_made(predictions: str, predictor: str):
    if predictor == "ConcurrentPredictor":
        answer = post(predictions, GREEDY, headers={"Accept": "text/event-stream"})
        assert answer.status_code == 406, answer.text
        return
    # Sixteen answers, because one is over before HTTP notices.
    inputs = {"max_new_tokens": 240, "min_new_tokens": 240, "num_outputs": 16}
    events = list(stream(predictions, "number", **inputs))
    pieces = [(data["chunk"], at) for name, data, at in events if name == "output"]
    assert len(pieces) > 20, events[-1:]
    metrics = next(data["metrics"] for name, data, _ in events if name == "completed")
    seconds = metrics["output_token_count"] / metrics["tokens_per_second"]
    assert pieces[-1][1] - pieces[0][1] > 0.25 * seconds
    joined = "".join(piece for piece, _ in pieces)
    assert joined == text_of(ask(predictions, "number", **inputs))


def test_a_stop_sequence_is_never_shown(predictions: str, archive: Path):
    row = ROWS[4]
    stop = row["completion"][4:9]
    inputs = {"replicate_weights": archive.name, "stop_sequences": json.dumps([stop])}
    answer = ask(predictions, row["prompt"], **inputs)
    assert text_of(answer) == row["completion"].partition(stop)[0]
    assert answer["metrics"]["finish_reason"] == "stop"


def test_metrics_of_a_request(predictions: str, archive: Path):
    answer = ask(predictions, ROWS[0]["prompt"], replicate_weights=archive.name)
    metrics = answer["metrics"]
    assert metrics["finish_reason"] == "end"
    assert metrics["output_token_count"] > 3
    assert metrics["input_token_count"] > 3
    assert metrics["tokens_per_second"] > 0
    assert 0 < metrics["time_to_first_token"] < 10
    assert metrics["seed"] == 0
    assert ask(predictions, "x", max_new_tokens=3)["metrics"]["finish_reason"] == "length"


def test_metrics_of_the_process(predictions: str, archive: Path):
    def process(**inputs) -> dict:
        return ask(predictions, "x", replicate_weights=archive.name, **inputs)["metrics"]["process"]

    before = process()
    refused = ask(predictions, "x", prompt_template="none")
    assert refused["status"] == "failed"
    after = process(max_new_tokens=7, min_new_tokens=7)
    assert after["requests_served"] == before["requests_served"] + 1
    assert after["requests_failed"] == before["requests_failed"] + 1
    assert after["output_token_count"] == before["output_token_count"] + 7
    assert after["adapters_on_device"]["hits"] > before["adapters_on_device"]["hits"]
    assert after["uptime_seconds"] > before["uptime_seconds"]


def test_seeds_reproduce(predictions: str):
    inputs = {"temperature": 1.5, "seed": 7}
    first = text_of(ask(predictions, "It", **inputs))
    assert text_of(ask(predictions, "It", **inputs)) == first
    assert text_of(ask(predictions, "It", **{**inputs, "seed": 8})) != first


def test_messages_are_the_conversation_that_a_prompt_is(predictions: str, archive: Path):
    row = ROWS[6]
    messages = json.dumps([{"role": "user", "content": row["prompt"]}])
    found = ask(predictions, "", messages=messages, replicate_weights=archive.name)
    assert text_of(found) == row["completion"]


def test_the_next_turn_reads_only_what_is_new(predictions: str):
    turns = [{"role": "user", "content": "What is the colour of number 3?"}]
    first = ask(predictions, "", messages=json.dumps(turns))
    turns += [{"role": "assistant", "content": text_of(first)}]
    turns += [{"role": "user", "content": "And of number 4?"}]
    second = ask(predictions, "", messages=json.dumps(turns))
    assert second["metrics"]["cached_input_token_count"] >= first["metrics"]["input_token_count"]


def test_an_answer_follows_its_json_schema(predictions: str):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "number": {"type": "boolean"}},
        "required": ["colour", "number"],
        "additionalProperties": False,
    }
    for seed in range(4):
        inputs = {"json_schema": json.dumps(schema), "temperature": 1, "seed": seed}
        value = json.loads(text_of(ask(predictions, "It", **inputs, max_new_tokens=100)))
        assert value["colour"] in ("red", "green")
        assert isinstance(value["number"], bool)
        assert len(value) == 2


def test_several_answers_are_a_list_of_what_each_seed_gives(predictions: str):
    inputs = {"temperature": 1.5, "seed": 20}
    several = ask(predictions, "It", num_outputs=3, **inputs)
    texts = json.loads(text_of(several))
    alone = [text_of(ask(predictions, "It", **{**inputs, "seed": 20 + n})) for n in range(3)]
    assert texts == alone
    assert len(set(texts)) == 3
    assert len(several["metrics"]["finish_reasons"]) == 3


def test_log_probabilities_are_those_of_the_model(predictions: str, base_dir: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    answer = ask(predictions, "It", logprobs=2, max_new_tokens=4)
    (told,) = answer["metrics"]["logprobs"]
    assert "".join(token["token"] for token in told) == text_of(answer)
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode("It")]])
    logits = AutoModelForCausalLM.from_pretrained(base_dir)(ids).logits[0, -1]
    values = logits.log_softmax(-1).topk(2).values.tolist()
    assert told[0]["logprob"] == pytest.approx(values[0], abs=1e-4)
    assert [best["logprob"] for best in told[0]["top"]] == pytest.approx(values, abs=1e-4)


def test_many_readers_at_once_get_what_each_gets_alone(predictions, predictor, archive):
    requests_ = [
        {
            "prompt": row["prompt"],
            "seed": number,
            "temperature": 0.9 * (number % 2),
            **({"replicate_weights": archive.name} if number % 3 else {}),
        }
        for number, row in enumerate(ROWS[:NUM_READERS])
    ]
    alone = [text_of(ask(predictions, **inputs)) for inputs in requests_]
    with ThreadPoolExecutor(NUM_READERS) as readers:
        together = list(readers.map(lambda inputs: text_of(ask(predictions, **inputs)), requests_))
    assert together == alone


def test_a_canceled_request_leaves_its_place_to_others(predictions: str):
    # A cancel that comes when the answer is just complete comes too late: the next one is in time.
    statuses = (cancel_a_long_request(predictions, number) for number in range(20))
    assert "canceled" in statuses
    assert text_of(ask(predictions, "number", max_new_tokens=3)) is not None


def cancel_a_long_request(predictions: str, number: int) -> str:
    url = f"{predictions}/to-cancel-{number}"
    # Sixteen long answers take a while, unless they are ended.
    inputs = {**GREEDY, "max_new_tokens": 240, "min_new_tokens": 240, "num_outputs": 16}
    with ThreadPoolExecutor(1) as client:
        request = {"input": {"prompt": "number", **inputs}}
        answer = client.submit(requests.put, url, json=request, timeout=60)
        while not answer.done():
            if requests.post(f"{url}/cancel", timeout=30).status_code != 404:
                break
    return answer.result().json()["status"]


BAD_REQUESTS = {
    "no-prompt": ({"prompt": None}, 422, "prompt"),
    "temperature": ({"temperature": 9}, 422, "maximum of 5"),
    "top_p": ({"top_p": 1.5}, 422, "maximum of 1"),
    "max_new_tokens": ({"max_new_tokens": 0}, 422, "minimum of 1"),
    "top_k": ({"top_k": -2}, 422, "minimum of -1"),
    "template": ({"prompt_template": "none"}, 200, "expected a text that holds {prompt}"),
    "stop-list": ({"stop_sequences": "[1]"}, 200, "expected a JSON list of strings"),
    "stop-many": ({"stop_sequences": "a," * 500_000}, 200, "expected at most 64 sequences"),
    "too-long": ({"prompt": "number " * 300}, 200, "the context that is served; found"),
    "absolute": ({"replicate_weights": "/etc/passwd"}, 200, "outside of WEIGHTS_DIR"),
    "traversal": ({"replicate_weights": "../../etc/passwd"}, 200, "outside of WEIGHTS_DIR"),
    "missing": ({"replicate_weights": "none.tar"}, 200, "there is no file or folder 'none.tar'"),
    "scheme": ({"replicate_weights": "ftp://host/w.tar"}, 200, "expected an http or https URL"),
    "messages": ({"prompt": "", "messages": "[]"}, 200, "expected a JSON list of 1 to"),
    "two-prompts": ({"messages": "[]"}, 200, "expected an empty prompt beside it"),
    "roles": (
        {"prompt": "", "messages": json.dumps([{"role": "tool", "content": "x"}])},
        200,
        'messages: "[0].role": expected "system" or "user", found the text "tool"',
    ),
    "schema": ({"json_schema": "[1]"}, 200, "json_schema: expected a JSON object"),
    "schema-type": ({"json_schema": '{"type": "nope"}'}, 200, "json_schema: expected a schema"),
    "outputs": ({"num_outputs": 17}, 422, "maximum of 16"),
    "training": ({"train_data": data_url(b"")}, 200, "this server answers prompts; expected a"),
    "no-archive": ({"replicate_weights": data_url(b"hello")}, 200, "not a .tar or .tar.gz"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_one_sentence(predictions: str, name: str):
    inputs, status, sentence = BAD_REQUESTS[name]
    url = predictions.replace("/predictions", "/trainings") if name == "training" else predictions
    answer = post(url, inputs if name == "training" else {"prompt": "x", **GREEDY, **inputs})
    assert answer.status_code == status
    body = answer.json()
    message = body["error"] if status == 200 else json.dumps(body["detail"])
    assert sentence in message
    assert "Traceback" not in answer.text
    assert text_of(ask(predictions, "x", max_new_tokens=1)) is not None


BAD_TRAININGS = {
    "bad-line": ({"train_data": jsonl([ROWS[0], {"prompt": "a"}])}, "line 2: expected the key"),
    "empty": ({"train_data": data_url(b"")}, "holds no examples"),
    "csv": (
        {"train_data": data_url(b"prompt,completion\na,b\n")},
        "expected a JSONL file in UTF-8, found a CSV file",
    ),
    "local-path": ({"train_data": "/etc/passwd"}, "expected a file or an http(s) address"),
    "bad-validation": ({"validation_data": jsonl([1])}, "line 1: expected a JSON object"),
    "learning-rate": ({"learning_rate": 0}, "learning_rate: expected a number above 0"),
    "template": ({"prompt_template": "x"}, "prompt_template: expected a text that holds {prompt}"),
    "modules": ({"lora_target_modules": "nope"}, "lora_target_modules: expected all-linear or"),
    "dropout": ({"lora_dropout": 1}, "lora_dropout: expected a number below 1"),
    "all-cut": (
        {"pack_sequences": True, "chunk_size": 1},
        "nothing is left to learn after cutting the examples to 1 tokens",
    ),
}


@pytest.mark.parametrize("name", BAD_TRAININGS)
def test_a_bad_training_is_one_sentence(trainings: str, name: str):
    inputs, sentence = BAD_TRAININGS[name]
    body = post(trainings, {"train_data": jsonl(ROWS), **inputs}).json()
    assert body["status"] == "failed"
    assert sentence in body["error"]
    assert "Traceback" not in json.dumps(body)


def wait_until_none_works(runs: Path) -> None:
    """Wait until no process of a training is left, as it must be within five seconds."""
    deadline = time.monotonic() + 5
    while session_processes(str(runs)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_canceled_training_leaves_no_process(trainings: str, runs: Path):
    url = f"{trainings}/to-cancel"
    request = {"input": {"train_data": jsonl(ROWS), "num_train_epochs": 5000}}
    answer = send(requests.put, url, request, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    while "step 3" not in (requests.put(url, json=request, timeout=30).json().get("logs") or ""):
        time.sleep(0.2)
    assert session_processes(str(runs))
    requests.post(f"{url}/cancel", timeout=30).raise_for_status()
    wait_until_none_works(runs)
    deadline = time.monotonic() + 10
    health = f"{trainings.removesuffix('/trainings')}/health-check"
    while requests.get(health, timeout=5).json()["status"] != "READY":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def client(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "src.cli.client", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def test_the_command_line(base_dir: Path, archive: Path, tmp_path: Path, write_rows):
    model = {"BASE_MODEL": str(base_dir)}
    row = ROWS[5]
    options = ["-i", "temperature=0", "-i", "repetition_penalty=1", "-w", str(archive)]
    done = client("predict", "-i", f"prompt={row['prompt']}", *options, **model)
    assert (done.returncode, done.stdout) == (0, row["completion"] + "\n")
    output = tmp_path / "out.tar"
    done = client("train", str(write_rows(ROWS)), "-i", "max_steps=2", "-o", str(output), **model)
    assert done.returncode == 0, done.stderr
    assert "step 2/2 | loss " in done.stdout
    with tarfile.open(fileobj=io.BytesIO(output.read_bytes())) as tar:
        assert tar.getnames() == MEMBERS


BAD_COMMANDS = {
    "unknown-input": (["predict", "-i", "promt=x"], "there is no such input; did you mean prompt?"),
    "no-equals": (["predict", "-i", "prompt"], "expected name=value"),
    "no-prompt": (["predict", "Hello"], "the prompt is an input: scripts/predict -i prompt=Hello"),
    "no-number": (["predict", "-i", "prompt=x", "-i", "top_k=many"], "expected a whole number"),
    "not-finite": (["predict", "-i", "prompt=x", "-i", "top_p=nan"], "expected a number"),
    "no-text": (["predict", "-i", "prompt=@BINARY"], "expected a text file in UTF-8"),
    "no-weights": (["predict", "-i", "prompt=x", "-w", "none.tar"], "there is no file none.tar"),
    "no-data": (["train", "none.jsonl"], "there is no file none.jsonl"),
    "bad-line": (["train", "BAD"], "bad.jsonl, line 1: expected a JSON object"),
    "below-minimum": (["train", "GOOD", "-i", "lora_rank=0"], "lora_rank: 0 is less than"),
    "no-folder": (["train", "GOOD", "-o", "none/w.tar"], "there is no folder none"),
    "no-file": (["train", "GOOD", "-o", "/proc/w.tar"], "-o: cannot write /proc/w.tar"),
    "no-server": (
        ["train", "http://127.0.0.1:9/x.jsonl"],
        "error: could not download /x.jsonl from 127.0.0.1:9: no connection",
    ),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_a_bad_command_is_one_sentence(name: str, base_dir: Path, write_rows):
    arguments, sentence = BAD_COMMANDS[name]
    files = {
        "BAD": lambda: str(write_rows([1], "bad.jsonl")),
        "GOOD": lambda: str(write_rows(ROWS)),
    }
    arguments = [files[a]() if a in files else a for a in arguments]
    binary = write_rows([], "binary")
    binary.write_bytes(b"\xff\xfe\x00")
    arguments = [a.replace("BINARY", str(binary)) for a in arguments]
    done = client(*arguments, BASE_MODEL=str(base_dir))
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert not (ROOT / "weights.tar").exists()


def test_an_interrupted_command_leaves_no_process(
    base_dir: Path, write_rows, tmp_path: Path, runs: Path
):
    data = write_rows(ROWS, "interrupted.jsonl")
    output = tmp_path / "never.tar"
    command = [sys.executable, "-u", "-m", "src.cli.client", "train", str(data)]
    command += ["-i", "num_train_epochs=5000", "-o", str(output)]
    # Tests that run in the background of a shell ignore the signal, and what they start does too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "BASE_MODEL": str(base_dir)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3"):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not output.exists()
    wait_until_none_works(runs)


def test_a_killed_server_ends_the_command(base_dir: Path, write_rows, runs: Path):
    """Through a proxy that nothing listens on: loopback must not go there."""
    data = write_rows(ROWS, "killed.jsonl")
    command = [sys.executable, "-u", "-m", "src.cli.client", "train", str(data)]
    process = subprocess.Popen(
        [*command, "-i", "num_train_epochs=5000"], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "BASE_MODEL": str(base_dir), "http_proxy": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    for pid in children_of(process.pid):
        os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors == "error: the server is gone (often: the machine ran out of memory)\n"
    wait_until_none_works(runs)


def test_a_killed_command_leaves_no_process(base_dir: Path, write_rows, runs: Path):
    data = write_rows(ROWS, "killed-command.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "src.cli.client", "train", str(data),
         "-i", "num_train_epochs=5000"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "BASE_MODEL": str(base_dir)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    process.kill()
    process.communicate(timeout=30)
    wait_until_none_works(runs)


def children_of(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in text.split()]


def test_a_base_model_that_is_not_there(tmp_path: Path):
    for name, sentence in {
        "": "BASE_MODEL is not set",
        "/none": "is no folder here",
        str(tmp_path): "expected a config.json, found none",
    }.items():
        done = client("predict", "-i", "prompt=x", BASE_MODEL=name)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
