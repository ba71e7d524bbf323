"""The engine's client says in a sentence why there is no engine, and comes back to a live one."""

import asyncio
import sys
from collections.abc import Mapping

import pytest

from src.service.work.engine_client import GONE, GONE_LOADING, EngineClient, EngineError
from src.service.work.workers import Kind, ProcessWorker

READY = '{"event": "ready", "model": {"num_slots": 2}}'


class Scripted:
    """Starts real processes, one program after another."""

    def __init__(self, *programs: str) -> None:
        self._programs = list(programs)

    async def start(self, kind: Kind, env: Mapping[str, str]) -> ProcessWorker:
        program = self._programs.pop(0) if len(self._programs) > 1 else self._programs[0]
        if program == "missing":
            raise FileNotFoundError("no such program")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=-1, stdout=-1, start_new_session=True
        )
        return ProcessWorker(process)


async def wait_until(client: EngineClient, *, ready: bool) -> None:
    async with asyncio.timeout(30):
        while client.is_ready != ready or (not ready and client.error is None):
            await asyncio.sleep(0.01)


async def run_with(client: EngineClient, test) -> None:
    running = asyncio.create_task(client.run())
    try:
        await test()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("program", "error"),
    [("missing", "cannot be started"), ("raise SystemExit(1)", GONE_LOADING)],
)
def test_an_engine_that_does_not_start_is_told_in_a_sentence(program: str, error: str):
    client = EngineClient(Scripted(program, f"print('{READY}', flush=True); input()"), {})

    async def test() -> None:
        await wait_until(client, ready=False)
        assert error in (client.error or "")
        with pytest.raises(EngineError, match="the engine"):
            async for _ in client.stream("a", {}):
                pass
        await wait_until(client, ready=True)
        assert client.error is None

    asyncio.run(run_with(client, test))


def test_requests_of_an_engine_that_dies_fail_and_the_next_engine_comes():
    client = EngineClient(Scripted(f"print('{READY}', flush=True); input()"), {})

    async def test() -> None:
        await wait_until(client, ready=True)
        messages = [message async for message in client.stream("a", {})]
        assert [(m["event"], m["status"], m["error"]) for m in messages] == [
            ("end", "failed", GONE)
        ]
        await wait_until(client, ready=True)

    asyncio.run(run_with(client, test))
