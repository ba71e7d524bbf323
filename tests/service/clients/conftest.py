"""One real service, one receiver and one training, which all clients share."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from src.cli.tiny_model import make_base_model
from tests.conftest import ROWS
from tests.service.clients.clients import CLIENTS, ROOT, Client
from tests.service.clients.guides import Guide
from tests.service.clients.receiver import running_receiver
from tests.service.clients.service import Service, fill
from tests.service.running import add_token, running_service

PROGRAM_SECONDS = 240
NUM_AT_ONCE, NUM_GUIDES_AT_ONCE = 3, 2


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
    names = ("alice", "mallory", "hasty", "me")
    owner, stranger, hasty, me = (add_token(name, environment) for name in names)
    with (
        running_service(environment, folder / "service.log") as api,
        running_receiver(api) as receiver,
    ):
        service = Service(
            api,
            {
                "API": api,
                "OWNER": "alice",
                "REPLICATE_API_TOKEN": owner,
                "OPENAI_API_KEY": owner,
                "STRANGER_TOKEN": stranger,
                "HASTY_TOKEN": hasty,
                "TOKEN_OF_ME": me,
                "RECEIVER": receiver,
                "DATA": str(data),
            },
        )
        service.environment.update(fill(service, data))
        yield service


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
