"""The service ends where it could only do nothing, and says why."""

import os
import socket
import sqlite3
import subprocess
from pathlib import Path

from tests.service.running import ROOT, SERVICE, running


def environment(folder: Path) -> dict[str, str]:
    """One with an engine that is never ready: these tests need none."""
    return {**os.environ, "DATA_DIR": str(folder), "BASE_MODEL": str(folder / "none")}


def test_a_service_whose_part_ends_ends_too(tmp_path: Path):
    log = tmp_path / "log"
    with running(environment(tmp_path), log) as (_, process):
        database = sqlite3.connect(tmp_path / "service.db")
        database.execute("DROP TABLE outbox")
        database.commit()
        database.close()
        assert process.wait(60) == 1
    assert '"a part of the service has ended"' in log.read_text()
    with running(environment(tmp_path), log):  # its supervisor starts another, which can work
        pass


def test_a_port_that_is_in_use_is_told_in_a_sentence(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [*SERVICE, "--port", str(port)],
            cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    told = f"error: --host 127.0.0.1 --port {port}: cannot listen there: Address already in use\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", told)


def test_more_replicas_than_gpus_are_refused_before_anything_is_told(tmp_path: Path):
    asked = {"CUDA_VISIBLE_DEVICES": "0", "ENGINE_REPLICAS": "2"}
    ended = subprocess.run(
        [*SERVICE, "--port", "0"],
        cwd=ROOT, env={**environment(tmp_path), **asked}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    told = "error: ENGINE_REPLICAS: expected at most one for each of the 1 GPUs, found 2\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", told)
