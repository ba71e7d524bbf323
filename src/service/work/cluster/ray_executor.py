"""Engines and trainings on the machines of a Ray cluster.

All nodes have this checkout and its environment at the same path. Ray holds no state of ours: it
finds a place, and tells when a machine is lost.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from src.environment import read_serve_environment, read_train_environment
from src.files.atomic import replacing_file
from src.service.work.cluster.job_host import WEIGHTS, JobHost
from src.service.work.job_environment import job_environment
from src.service.work.workers import Kind, Message
from src.training.inputs import FILES

PIECE_BYTES = 4 << 20
KILL_SECONDS = 5.0
"""Time for a machine to say that a job has been killed."""
OUTPUT = "weights.tar"
_connecting = threading.Lock()


class RayExecutor:
    """Starts jobs as children of actors, and trainings in placement groups.

    A training takes `NUM_PROCESSES` GPUs (1 by default) of each of `NUM_NODES` machines, an engine
    `TENSOR_PARALLEL` of one (1 by default); where the cluster has no GPU, one CPU.
    """

    async def start(self, kind: Kind, env: Mapping[str, str]) -> "RayWorker":
        """Start `src.jobs.KIND`, once there is a place for it.

        Raises OSError where the cluster cannot be reached.
        """
        try:
            await asyncio.to_thread(_connect, env.get("RAY_ADDRESS"))
        except (RayError, RuntimeError, ValueError) as error:
            raise ConnectionError(f"RAY_ADDRESS: the cluster cannot be reached: {error}") from None
        # Which GPUs it sees, Ray says.
        variables = job_environment(env)
        variables.pop("CUDA_VISIBLE_DEVICES", None)
        is_training = kind == "training"
        asked = read_train_environment(variables)
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        num_gpus = asked.num_processes
        if not is_training:
            num_gpus = read_serve_environment(variables).tensor_parallel
        resource, num = ("GPU", num_gpus or 1) if has_gpus else ("CPU", 1)
        num_nodes = asked.num_nodes if is_training else 1
        group = placement_group([{resource: num}] * num_nodes, strategy="STRICT_SPREAD")
        worker = RayWorker(group, Path(env.get("WEIGHTS_DIR") or "."))
        try:
            await group.ready()
            for number in range(num_nodes):
                host = ray.remote(JobHost).options(
                    num_cpus=num if resource == "CPU" else 0,
                    num_gpus=num if resource == "GPU" else 0,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
                )
                worker.hosts.append(host.remote())
            if num_nodes > 1:
                variables["RENDEZVOUS"] = await worker.hosts[0].free_address.remote()
            await asyncio.gather(*(host.start.remote(kind, variables) for host in worker.hosts))
        except BaseException as error:
            worker.end()
            if isinstance(error, RayError):
                raise ConnectionError("the machine was lost") from error
            raise
        return worker


class RayWorker:
    """A job on one machine, or on several; the first one has the files and says what happens."""

    def __init__(self, group: PlacementGroup, weights_dir: Path) -> None:
        self.hosts: list[Any] = []
        self.returncode: int | None = None
        """The exit code once it has ended; that of a kill where the machine was lost."""
        self._group, self._weights_dir = group, weights_dir
        self._has_ended = False
        self._sent: set[str] = set()
        self._output: Path | None = None
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def send(self, message: Message) -> None:
        """Send it a message, and before that the files that it names.

        Raises ConnectionError where it is gone, OSError where a file cannot be read.
        """
        if self._has_ended or self.returncode is not None:
            raise ConnectionResetError("the job is gone")
        # A file on its way holds up what else is said of the same request, and no other.
        turn = self._turns.setdefault(str(message.get("id")), asyncio.Lock())
        try:
            async with turn:
                if message["do"] == "train":
                    await self._send_training(message)
                    return
                if message["do"] == "predict":
                    message = await self._with_weights(message)
                await asyncio.gather(*(host.send.remote(message) for host in self.hosts))
        except RayError:
            raise ConnectionResetError("the machine is lost") from None

    async def __aiter__(self) -> AsyncIterator[Message]:
        try:
            while said := await self.hosts[0].receive.remote():
                for message in said:
                    yield await self._with_output(message)
            code = await self.hosts[0].returncode.remote()
        except RayError:
            code = -signal.SIGKILL
        if self.returncode is None:
            self.returncode = code

    async def stop(self, seconds: float) -> None:
        """End its stdin, and after so many seconds its processes; returns when they are gone."""
        if self._has_ended:
            return
        try:
            with suppress(RayError, TimeoutError):
                async with asyncio.timeout(seconds + KILL_SECONDS):
                    stopping = [host.stop.remote(seconds) for host in self.hosts]
                    code, *_ = await asyncio.gather(*stopping)
                    if self.returncode is None:
                        self.returncode = code
        finally:
            self.end()

    def end(self) -> None:
        """Give back its place; whatever still runs there ends with its stdin."""
        self._has_ended = True
        if self.returncode is None:
            self.returncode = -signal.SIGKILL
        for host in self.hosts:
            ray.kill(host)
        remove_placement_group(self._group)

    async def _send_training(self, message: Message) -> None:
        inputs = dict(message["input"])
        files = {name: inputs.pop(name) for name in FILES if inputs.get(name) is not None}
        self._output = Path(message["output"])
        first, *others = self.hosts
        for host in others:
            await host.send.remote({**message, "input": inputs})
        for name, path in files.items():
            inputs[name] = await self._send_file(Path(path), name)
        output = await first.path_of.remote(OUTPUT)
        names = {name: Path(path).name for name, path in files.items()} | message.get("names", {})
        await first.send.remote({**message, "input": inputs, "names": names, "output": output})

    async def _with_weights(self, message: Message) -> Message:
        """Send the weights that a request names by path; return it with their path there."""
        name = message["input"].get("replicate_weights")
        if not isinstance(name, str) or "://" in name or name[:5].lower() == "data:":
            return message
        folder = self._weights_dir.resolve()
        path = (folder / name).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            return message  # the engine says what is wrong with it
        name = str(path.relative_to(folder))
        await self._send_file(path, f"{WEIGHTS}/{name}")
        return {**message, "input": {**message["input"], "replicate_weights": name}}

    async def _send_file(self, path: Path, name: str) -> str:
        """Copy a file to the first machine, once, and return its path there."""
        host, start = self.hosts[0], 0
        async with self._turns.setdefault(name, asyncio.Lock()):
            if name not in self._sent:
                with path.open("rb") as file:
                    while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                        await host.write.remote(name, start, piece)
                        start += len(piece)
                self._sent.add(name)
        return await host.path_of.remote(name)

    async def _with_output(self, message: Message) -> Message:
        """Fetch the archive of a training that has ended; return its end with the path here."""
        output = self._output
        if output is None or not message.get("weights"):
            return message
        try:
            with replacing_file(output) as partial, partial.open("wb") as file:
                while piece := await self.hosts[0].read.remote(OUTPUT, file.tell(), PIECE_BYTES):
                    await asyncio.to_thread(file.write, piece)
        except OSError as error:
            failed = f"cannot write the weights to {output}: {error.strerror}"
            return {**message, "status": "failed", "error": failed, "weights": None}
        return {**message, "weights": str(output)}


def _connect(address: str | None) -> None:
    with _connecting:
        if not ray.is_initialized():
            ray.init(address=address, logging_level=logging.ERROR)
