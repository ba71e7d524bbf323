"""One real service, one receiver and one training, which all clients share."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from src.cli.tiny_model import make_base_model
from tests.conftest import ROWS
from tests.service.clients.clients import CLIENTS, ROOT, Client
from tests.service.clients.guides import Guide
from tests.service.clients.receiver import running_receiver

START_SECONDS = 60
PROGRAM_SECONDS = 240
MORE_THAN_SLOTS = 40
"""Predictions that fill the engine and its queue."""
NUM_AT_ONCE, NUM_GUIDES_AT_ONCE = 3, 2
GUIDE_VERSION = "4841472f9a9d279cf03ba0a8f633b13eccd0e0a033d3af0c9b58830982d33132"
SERVICE = [sys.executable, "-m", "src.service.main"]


@dataclass(frozen=True)
class Service:
    """A service that runs, and what the programs find there."""

    api: str
    environment: dict[str, str]
    """What all programs are told."""

    def call(
        self, method: str, path: str, headers: dict[str, str] | None = None, **body: object
    ) -> dict:
        """Return the answer to a request of the owner."""
        token = self.environment["REPLICATE_API_TOKEN"]
        headers = {"Authorization": f"Bearer {token}", **(headers or {})}
        answer = requests.request(
            method, f"{self.api}/v1{path}", json=body or None, headers=headers, timeout=30
        )
        assert answer.ok, answer.text
        return answer.json()


@pytest.fixture(scope="session")
def installed() -> None:
    """Install the clients, once for all runs."""
    missing = {need for client in CLIENTS for need in client.needs if shutil.which(need) is None}
    if missing or shutil.which("npm") is None:
        pytest.skip(f"the real clients need programs of this machine: {sorted(missing | {'npm'})}")
    subprocess.run([ROOT / "scripts" / "install-clients"], check=True)


@pytest.fixture(scope="session")
def service(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on a base model that is tiny, and can go on for long."""
    folder = tmp_path_factory.mktemp("service")
    base_model = folder / "tiny-llama"
    make_base_model(
        base_model, [row["completion"] for row in ROWS] * 4, vocab_size=400, hidden_size=128,
        num_layers=4, num_heads=4, num_key_value_heads=2, max_seq_len=32768,
    )  # fmt: skip
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    environment = {
        **os.environ,
        "DATA_DIR": str(folder / "data"),
        "BASE_MODEL": str(base_model),
        "NUM_PROCESSES": "1",
        "ALLOW_PRIVATE_URLS": "1",
        "REQUESTS_PER_MINUTE": "100000",
        "TRAININGS_AT_ONCE": "2",
        "FILE_GB": "0.002",
    }
    owner, stranger, hasty = (_token(name, environment) for name in ("alice", "mallory", "hasty"))
    with _running(environment, folder / "service.log") as api, running_receiver(api) as receiver:
        service = Service(
            api,
            {
                "API": api,
                "OWNER": "alice",
                "REPLICATE_API_TOKEN": owner,
                "OPENAI_API_KEY": owner,
                "STRANGER_TOKEN": stranger,
                "HASTY_TOKEN": hasty,
                "RECEIVER": receiver,
                "DATA": str(data),
            },
        )
        service.environment.update(_fill(service, data))
        yield service


def _token(name: str, environment: dict[str, str]) -> str:
    command = [*SERVICE, "token", "add", name]
    return subprocess.check_output(command, cwd=ROOT, env=environment, text=True).strip()


@contextmanager
def _running(environment: dict[str, str], log: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*SERVICE, "--port", str(port)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(api):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield api
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_ready(api: str) -> bool:
    try:
        return requests.get(f"{api}/health", timeout=5).json()["engine"] == "ready"
    except requests.ConnectionError:
        return False


def _fill(service: Service, data: Path) -> dict[str, str]:
    """Make what the programs look for, and the training that they follow; return where it is."""
    for name in ("trained", "guided", "llama2-summarizer"):
        service.call(
            "POST", "/models", owner="alice", name=name, visibility="private", hardware="cpu"
        )
    chat = service.call("GET", "/models/meta/llama-2-7b-chat")["latest_version"]["id"]
    service.call(
        "POST", "/deployments", name="deployed", model="meta/llama-2-7b-chat", version=chat,
        hardware="cpu", min_instances=0, max_instances=1,
    )  # fmt: skip
    urls = service.call("POST", "/upload/data.jsonl")
    requests.put(urls["upload_url"], data.read_bytes(), timeout=30).raise_for_status()
    training = service.call(
        "POST",
        f"/models/meta/llama-2-7b/versions/{GUIDE_VERSION}/trainings",
        destination="alice/trained",
        input={"train_data": urls["serving_url"], "num_train_epochs": 2, "learning_rate": 0.01},
    )
    with ThreadPoolExecutor(8) as pool:  # more than one page of predictions
        one = {"version": chat, "input": {"prompt": "Hello", "max_new_tokens": 1}}
        list(pool.map(lambda _: service.call("POST", "/predictions", **one), range(120)))
    return {
        "TRAINING": training["id"],
        "DATA_URL": urls["serving_url"],
        "ABORTED": _abort(service, chat),
    }


def _abort(service: Service, version: str) -> str:
    """Return the id of a prediction that waited behind long ones until its deadline."""
    long = {"prompt": "Go on.", "min_new_tokens": 8000, "max_new_tokens": 8000}
    fillers = [
        service.call("POST", "/predictions", version=version, input=long)
        for _ in range(MORE_THAN_SLOTS)
    ]
    late = service.call(
        "POST", "/predictions", {"Cancel-After": "5s"}, version=version, input={"prompt": "Hello"}
    )
    time.sleep(5)
    for filler in fillers:
        service.call("POST", f"/predictions/{filler['id']}/cancel")
    return late["id"]


@pytest.fixture(scope="session")
def programs(
    service: Service, request: pytest.FixtureRequest
) -> Iterator[dict[object, Future[subprocess.CompletedProcess]]]:
    """The ends of all programs: of a client's checks by (client, program), and of a guide.

    They run side by side, and only what this session has collected.
    """
    checks: dict[tuple[Client, Path], list[str]] = {}
    guides: list[Guide] = []
    for item in request.session.items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "check" in parameters:
            client, program, check = parameters["check"]
            checks.setdefault((client, program), []).append(check.name)
        elif "guide" in parameters:
            guides.append(parameters["guide"])

    def run_checks(client: Client, program: Path, names: list[str]):
        return _run(service, client, [*client.command(program), *names], Path.cwd())

    def run_guide(guide: Guide):
        arguments = [service.environment[name] for name in guide.arguments]
        command = [*guide.client.command(guide.program), *arguments]
        # One of them calls the address of the API what the others find in it.
        has_v1 = guide.program.name == "training-guide.sh"
        more = {"API": f"{service.api}/v1"} if has_v1 else {}
        return _run(service, guide.client, command, guide.program.parent, **more)

    with ThreadPoolExecutor(NUM_AT_ONCE) as pool, ThreadPoolExecutor(NUM_GUIDES_AT_ONCE) as aside:
        yield {
            **{guide: aside.submit(run_guide, guide) for guide in guides if guide.program.exists()},
            **{key: pool.submit(run_checks, *key, names) for key, names in checks.items()},
        }


def _run(
    service: Service, client: Client, command: list[str], folder: Path, **more: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **service.environment, **client.environment(service.api), **more},
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
    )
