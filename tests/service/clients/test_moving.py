"""The scripts of docs/moving.md run as they stand there."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.service.clients.clients import CLIENTS, INSTALLED, ROOT
from tests.service.clients.conftest import Service

SCRIPTS = re.findall(r"```python\n(.+?)```", (ROOT / "docs/moving.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("script", SCRIPTS, ids=["replicate", "openai"])
def test_a_moved_script_runs(script: str, service: Service, tmp_path: Path):
    client = next(client for client in CLIENTS if client.version == "1.0.7")
    program = tmp_path / "script.py"
    program.write_text(script)
    token = service.environment["TOKEN_OF_ME"]
    done = subprocess.run(
        [INSTALLED / "python" / "bin" / "python", program],
        cwd=Path(service.environment["DATA"]).parent,
        env={
            **os.environ,
            **client.environment(service.api),
            "REPLICATE_API_TOKEN": token,
            "OPENAI_API_KEY": token,
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    state, answer = done.stdout.split("\n", 1)
    assert state == "succeeded None"
    assert answer.strip()
