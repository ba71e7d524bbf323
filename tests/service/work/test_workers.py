"""Jobs as workers: what they are asked and say, and that nothing is left of them."""

import asyncio
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from src.service.settings import read_service_settings
from src.service.work.job_environment import JOB_VARIABLES
from src.service.work.workers import LocalExecutor, Message, ProcessWorker, Worker, make_executor

ROOT = Path(__file__).resolve().parents[3]
NOT_OF_JOBS = {"PORT", "COG_MAX_CONCURRENCY"}
"""Variables of Cog's server alone."""


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Return a test that runs a coroutine in a new event loop."""

    def run(base_dir: Path, tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(base_dir, tmp_path), 120))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def event(worker: Worker, name: str) -> Message:
    async for message in worker:
        if message["event"] == name:
            return message
    raise AssertionError(f"the job ended with {worker.returncode} before {name}")


async def freeze(pid: int) -> None:
    """Stop a process; returns when all of its threads stand still."""
    os.kill(pid, signal.SIGSTOP)
    stats = list(Path(f"/proc/{pid}/task").glob("*/stat"))
    while any(stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in stats):
        await asyncio.sleep(0.01)


async def start_engine(base_dir: Path) -> ProcessWorker:
    worker = await LocalExecutor().start("engine", {**os.environ, "BASE_MODEL": str(base_dir)})
    await event(worker, "ready")
    return worker


@in_a_loop
async def test_a_worker_says_what_its_job_says(base_dir: Path, tmp_path: Path):
    """A message of megabytes too, in both directions."""
    worker = await start_engine(base_dir)
    assert worker.returncode is None
    asked = {"prompt": "What?", "max_new_tokens": 3, "min_new_tokens": 3, "logprobs": 2}
    await worker.send({"do": "predict", "id": "a", "input": asked})
    end = await event(worker, "end")
    assert (end["status"], len(end["metrics"]["logprobs"][0])) == ("succeeded", 3)
    huge = "?" * 4_000_000
    await worker.send({"do": "predict", "id": "b", "input": {"prompt": huge}})
    assert "expected at most" in (await event(worker, "end"))["error"]
    await worker.stop(5)
    assert worker.returncode == 0
    assert [message async for message in worker] == []
    with pytest.raises(ConnectionError):
        await worker.send({"do": "report"})


@in_a_loop
async def test_a_killed_job_ends_what_is_said(base_dir: Path, tmp_path: Path):
    worker = await start_engine(base_dir)
    os.kill(worker.pid, signal.SIGKILL)
    assert [message async for message in worker] == []
    assert worker.returncode == -signal.SIGKILL
    with pytest.raises(ConnectionError):
        await worker.send({"do": "report"})
    await worker.stop(5)


@in_a_loop
async def test_a_frozen_job_is_killed_in_time(base_dir: Path, tmp_path: Path):
    worker = await start_engine(base_dir)
    await freeze(worker.pid)
    await worker.stop(0.5)
    assert worker.returncode == -signal.SIGKILL


@in_a_loop
async def test_a_job_ends_with_the_service(base_dir: Path, tmp_path: Path):
    """Whoever holds the other end of its stdin, killed or not."""
    code = (
        "import asyncio, os; from src.service.work.workers import LocalExecutor\n"
        "async def main():\n"
        "    worker = await LocalExecutor().start('engine', os.environ)\n"
        "    print(worker.pid, flush=True)\n"
        "    async for message in worker: print(message['event'], flush=True)\n"
        "asyncio.run(main())"
    )
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        cwd=ROOT,
        env={**os.environ, "BASE_MODEL": str(base_dir)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert service.stdout is not None
    pid = int(await service.stdout.readline())
    assert await service.stdout.readline() == b"ready\n"
    service.kill()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    await service.wait()


@in_a_loop
async def test_a_training_is_a_worker(base_dir: Path, tmp_path: Path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 1}\n')
    worker = await LocalExecutor().start("training", {**os.environ, "BASE_MODEL": str(base_dir)})
    asked = {"train_data": str(data)}
    await worker.send({"do": "train", "input": asked, "output": str(tmp_path / "weights.tar")})
    end = await event(worker, "end")
    assert end["error"].startswith("data.jsonl, line 2")
    await worker.stop(5)
    assert worker.returncode == 1


DOCKER = """#!/bin/sh -e
# Runs the command of `docker run` on this machine, with no more of the environment than asked for.
here=$(dirname "$0")
echo "$@" >> "$here/calls"
[ "$1" = run ] || { kill -9 "$(cat "$here/pid")"; exit; }
set -- "$@" --
names=PATH
while [ "$1" != finetune ]; do
    [ "$1" != -e ] || names="$names $2"
    shift
done
shift
keep=
for name in $names; do keep="$keep $name=$(printenv "$name")"; done
echo $$ > "$here/pid"
exec env -i $keep PYTHON -m "$3"
"""


@in_a_loop
async def test_an_image_runs_the_work(base_dir: Path, tmp_path: Path):
    """With a stand-in for docker."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(DOCKER.replace("PYTHON", sys.executable))
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    os.environ["PATH"] = f"{docker.parent}:{os.environ['PATH']}"
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    settings = read_service_settings({"DATA_DIR": str(data_dir), "COG_IMAGE": "finetune"})
    executor = make_executor(settings)
    environment = {"BASE_MODEL": str(base_dir), "HF_TOKEN": "hf_secret", "DATABASE_URL": "sqlite:"}
    worker = await executor.start("engine", {**os.environ, **environment})
    assert (await event(worker, "ready"))["model"]["name"] == base_dir.name
    call = (docker.parent / "calls").read_text()
    assert call.startswith("run -i --rm --name cog-finetune-engine-")
    for folder in (base_dir, data_dir):
        assert f" -v {folder}:{folder} " in call
    assert " -e HF_TOKEN " in call
    assert "hf_secret" not in call
    assert "DATABASE_URL" not in call
    assert call.endswith("finetune python -m src.jobs.engine\n")
    await freeze(int((docker.parent / "pid").read_text()))
    await worker.stop(0.5)
    calls = (docker.parent / "calls").read_text().splitlines()
    assert calls[1].split() == ["kill", calls[0].split()[4]]
    assert worker.returncode == -signal.SIGKILL


def test_the_variables_of_jobs_are_those_of_the_documentation():
    page = (ROOT / "docs/environment.md").read_text()
    tables = re.split(r"^## ", page, flags=re.MULTILINE)
    names = {
        name
        for table in tables
        if table.splitlines()[0] in ("Train and serve", "Train", "Serve")
        for row in re.findall(r"^\| (`[^|]*`) \|", table, flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert names - NOT_OF_JOBS == set(JOB_VARIABLES)
