"""Replicas share the requests, and one that dies takes only its own with it."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from src.errors import UserError
from src.service.settings import ServiceSettings
from src.service.work.engine_client import GONE
from src.service.work.engines import Engines, replica_environments
from src.service.work.workers import Kind, ProcessWorker

PROGRAM = """
import json, sys
def say(event, **told): print(json.dumps({"event": event, **told}), flush=True)
say("ready", model={"num_slots": 2})
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "predict":
        if asked["input"] == {"prompt": "die"}: raise SystemExit(1)
        say("output", id=asked["id"], text=NAME)
        if asked["input"] != {"prompt": "stay"}:
            say("end", id=asked["id"], status="succeeded", error=None, metrics={})
    elif asked["do"] == "cancel":
        say("end", id=asked["id"], status="canceled", error=None, metrics={})
"""


class Scripted:
    """Starts real processes that answer with the name in their environment."""

    async def start(self, kind: Kind, env: Mapping[str, str]) -> ProcessWorker:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"NAME = {env['NAME']!r}{PROGRAM}",
            stdin=-1, stdout=-1, start_new_session=True,
        )  # fmt: skip
        return ProcessWorker(process)


async def wait_for_slots(engines: Engines, number: int) -> None:
    async with asyncio.timeout(30):
        while engines.num_slots != number or not engines.is_ready:
            await asyncio.sleep(0.01)


async def texts(engines: Engines, request_id: str, prompt: str) -> list[str]:
    messages = [message async for message in engines.stream(request_id, {"prompt": prompt})]
    assert messages[-1]["event"] == "end"
    return [message["text"] for message in messages[:-1]] + [messages[-1]["error"] or "ended"]


def test_requests_go_where_room_is_and_outlive_the_death_of_another_replica():
    async def run() -> None:
        engines = Engines(Scripted(), [{"NAME": "a"}, {"NAME": "b"}])
        changes = []
        engines.on_change(lambda: changes.append(engines.num_slots))
        running = asyncio.create_task(engines.run())
        try:
            await wait_for_slots(engines, 4)
            assert changes == [2, 4]
            staying = engines.stream("staying", {"prompt": "stay"})
            first = (await anext(staying))["text"]
            other = "b" if first == "a" else "a"
            assert await texts(engines, "next", "go") == [other, "ended"]
            assert await texts(engines, "dying", "die") == [GONE]  # the freer one
            assert engines.is_ready
            assert await texts(engines, "beside", "go") == [first, "ended"]
            await engines.cancel("staying")
            assert [message["status"] async for message in staying] == ["canceled"]
            await wait_for_slots(engines, 4)
            await engines.pause()
            assert not engines.is_ready
            engines.resume()
            await wait_for_slots(engines, 4)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def settings(num_replicas: int, executor: str = "local") -> ServiceSettings:
    return ServiceSettings(
        data_dir=Path("/data"), database_url="sqlite://", engine_replicas=num_replicas,
        executor=executor,
    )  # fmt: skip


def test_replicas_have_a_gpu_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-a,5")
    seen = [env["CUDA_VISIBLE_DEVICES"] for env in replica_environments(settings(2))]
    assert seen == ["3", "GPU-a"]
    assert replica_environments(settings(1))[0]["CUDA_VISIBLE_DEVICES"] == "3,GPU-a,5"
    with pytest.raises(UserError, match="at most one for each of the 3 GPUs, found 4"):
        replica_environments(settings(4))
    assert len(replica_environments(settings(4, "ray"))) == 4
    monkeypatch.setenv("TENSOR_PARALLEL", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    seen = [env["CUDA_VISIBLE_DEVICES"] for env in replica_environments(settings(2))]
    assert seen == ["0,1", "2,3"]
    with pytest.raises(UserError, match="at most one for 2 of the 4 GPUs, found 3"):
        replica_environments(settings(3))


def test_replicas_without_a_gpu_share_the_processors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    assert [env["OMP_NUM_THREADS"] for env in replica_environments(settings(3))] == ["2"] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert replica_environments(settings(2))[0]["OMP_NUM_THREADS"] == "1"
