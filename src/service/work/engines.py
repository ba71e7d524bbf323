"""Replicas of the engine: each request goes to the one with the most room."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from src.environment import read_serve_environment
from src.errors import UserError
from src.service.settings import ServiceSettings, worker_environment
from src.service.work.engine_client import EngineClient, EngineError, Message
from src.service.work.workers import Executor


class Engines:
    """One engine, or several that answer the same requests."""

    def __init__(self, executor: Executor, environments: Sequence[dict[str, str]]) -> None:
        """Each replica has one of the environments."""
        self._replicas = [EngineClient(executor, environment) for environment in environments]

    @property
    def is_ready(self) -> bool:
        """Whether one takes requests."""
        return bool(self._ready)

    @property
    def num_slots(self) -> int:
        """How many requests those that are ready answer at once, at least 1."""
        return max(sum(replica.num_slots for replica in self._ready), 1)

    @property
    def error(self) -> str | None:
        """Why none can be started."""
        errors = [replica.error for replica in self._replicas]
        return errors[0] if all(errors) else None

    @property
    def model(self) -> Message:
        """What they say of their model, once one is ready."""
        return next((replica.model for replica in self._replicas if replica.model), {})

    @property
    def reports(self) -> list[Message]:
        """The counts of each, as last told."""
        return [replica.report for replica in self._replicas]

    def on_change(self, call: Callable[[], None]) -> None:
        """Call a function whenever one is ready, or cannot be started."""
        for replica in self._replicas:
            replica.on_change = call

    async def run(self) -> None:
        """Keep all of them running until this is canceled."""
        await asyncio.gather(*(replica.run() for replica in self._replicas))

    def stream(self, request_id: str, inputs: dict[str, object]) -> AsyncIterator[Message]:
        """Return what an engine says of a request, the last being its `end`.

        A request that is left before its end is canceled. Raises EngineError where there is no
        engine.
        """
        if not self._ready:
            raise EngineError(self.error or "the engine is not ready")
        freest = min(self._ready, key=lambda replica: replica.num_running / replica.num_slots)
        return freest.stream(request_id, inputs)

    async def cancel(self, request_id: str) -> None:
        """Have a request ended by the engine that has it; its `end` still comes."""
        for replica in self._replicas:
            await replica.cancel(request_id)

    async def ask_reports(self) -> None:
        """Ask for the counts, which come a moment later."""
        for replica in self._replicas:
            await replica.ask_report()

    async def pause(self) -> None:
        """Let running requests end; all stay down until `resume` was called as often."""
        await asyncio.gather(*(replica.pause() for replica in self._replicas))

    def resume(self) -> None:
        """Let them come back."""
        for replica in self._replicas:
            replica.resume()

    @property
    def _ready(self) -> list[EngineClient]:
        return [replica for replica in self._replicas if replica.is_ready]


def replica_environments(settings: ServiceSettings) -> list[dict[str, str]]:
    """Return the environment of each replica.

    Several on this machine have a GPU each, or as many as `TENSOR_PARALLEL` says, or without one
    their share of the processors. Raises UserError where there are too few GPUs.
    """
    num, shared = settings.engine_replicas, worker_environment(settings)
    if num == 1 or settings.executor == "ray":  # which finds each a place
        return [shared] * num
    gpus = _gpus(shared.get("CUDA_VISIBLE_DEVICES"))
    if not gpus:
        threads = str(max(len(os.sched_getaffinity(0)) // num, 1))
        return [{"OMP_NUM_THREADS": threads, **shared}] * num
    each = read_serve_environment(shared).tensor_parallel or 1
    if num * each > len(gpus):
        share = "one for each" if each == 1 else f"one for {each}"
        raise UserError(
            f"ENGINE_REPLICAS: expected at most {share} of the {len(gpus)} GPUs, found {num}"
        )
    shares = (",".join(gpus[number * each :][:each]) for number in range(num))
    return [{**shared, "CUDA_VISIBLE_DEVICES": share} for share in shares]


def _gpus(visible: str | None) -> list[str]:
    """Return the names of the GPUs that may be used."""
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
