"""The other ranks of a model: processes that do what the engine's own does, as they are told."""

import os
import pickle
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from signal import Signals
from typing import Any

import torch

from src.errors import RankLost
from src.model.partition import Partition
from src.serving.parallel.group import join_group, leave_group

END = b""
"""The last message."""
ROOT = Path(__file__).resolve().parents[3]
END_SECONDS = 5.0
"""For a follower to end by itself, and for the end of one to be noticed."""


@dataclass(frozen=True)
class Job:
    """What a follower loads, and where it meets the others."""

    folder: Path
    partition: Partition
    dtype: torch.dtype
    options: Any
    """Its `RunnerOptions`."""
    code_folder: Path | None
    """Where compiled code is kept."""
    is_on_gpu: bool
    meeting: Path = Path()


class Followers:
    """All ranks but this one, which is the first."""

    def __init__(self, job: Job, on_lost: Callable[[], object]) -> None:
        """Start them; `on_lost` is called, on any thread, when one of them is gone."""
        self.partition, self._on_lost = job.partition, on_lost
        self._lost: str | None = None
        self._is_closed, self._closing, self._seen = False, threading.Lock(), threading.Event()
        self._answers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._meeting = Path(tempfile.mkdtemp(prefix="cog-finetune-ranks-"))
        self._num_threads = torch.get_num_threads()
        if not job.is_on_gpu:
            torch.set_num_threads(max(1, self._num_threads // self.num_ranks))
        self._job = replace(job, meeting=self._meeting / "ranks")
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._commands: list[list[Any]] = [[] for _ in range(1, self.num_ranks)]
        self._threads = [
            threading.Thread(target=self._watch, args=(rank, *self._start(rank)), daemon=True)
            for rank in range(1, self.num_ranks)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_ranks(self) -> int:
        """How many ranks there are, this one included."""
        return self.partition.num_ranks

    def agree(self, value: int) -> int:
        """Return the smallest of the values of all ranks; raises RankLost where one has none."""
        values = [value]
        for _ in self._connections:
            answer = self._answers.get()
            self.check()
            assert answer is not None
            values.append(answer)
        self.tell(min(values))
        self.run()
        return min(values)

    def join(self, device: torch.device) -> None:
        """Meet the others, who are all there, to compute with them."""
        join_group(self._job.meeting, rank=0, num_ranks=self.num_ranks, device=device)

    def check(self) -> None:
        """Raise RankLost where a rank is gone."""
        if self._lost is not None:
            raise RankLost(self._lost)

    def tell(self, *command: Any) -> None:
        """Have all ranks do something, in its turn, before what they run next."""
        self.tell_each([command] * len(self._connections))

    def tell_each(self, commands: Sequence[Any]) -> None:
        """Have each rank do something of its own."""
        for waiting, command in zip(self._commands, commands, strict=True):
            waiting.append(command)

    def run(self, *command: Any) -> None:
        """Have all ranks do what they were told, and this, now; raises RankLost."""
        if command:
            self.tell(*command)
        self.check()
        for connection, commands in zip(self._connections, self._commands, strict=True):
            try:
                # Not by `send`, by which torch would share the tensors of an adapter.
                connection.send_bytes(pickle.dumps(commands))
            except OSError as error:
                raise self.lost_by(error) from error
            commands.clear()

    def lost_by(self, error: Exception) -> RankLost:
        """Return why ranks that computed together do not any more, where an error says so here."""
        if not self._seen.wait(END_SECONDS):
            self._lose(f"rank 0 of {self.num_ranks} failed: {error}")
        return RankLost(self._lost)

    def close(self) -> None:
        """End all ranks; returns when none of their processes is left."""
        with self._closing:
            self._is_closed = True
        for connection in self._connections:
            with suppress(OSError):  # of one that has ended
                connection.send_bytes(END)
        leave_group()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            process.kill()
        for thread in self._threads:
            thread.join()
        shutil.rmtree(self._meeting, ignore_errors=True)
        torch.set_num_threads(self._num_threads)

    def _start(self, rank: int) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = Pipe()
        command = (str(theirs.fileno()), str(os.getpid()))
        environ = {**os.environ}
        if not self._job.is_on_gpu:
            environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "src.serving.parallel.follower", *command],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what it prints, this rank prints too
            )
        self._connections.append(ours)
        self._processes.append(process)
        job = replace(self._job, partition=replace(self.partition, rank=rank))
        ours.send_bytes(pickle.dumps(job))
        return process, ours

    def _watch(self, rank: int, process: subprocess.Popen[bytes], connection: Connection) -> None:
        """Take what a follower says, until it ends."""
        failure = None
        with suppress(EOFError, OSError):
            while True:
                said = connection.recv()
                if isinstance(said, str):
                    failure = said
                else:
                    self._answers.put(said)
        connection.close()
        code = process.wait()
        how = f"was killed by {Signals(-code).name}" if code < 0 else f"ended with code {code}"
        reason = f"failed: {failure}" if failure else how
        self._lose(f"rank {rank} of {self.num_ranks} {reason}")

    def _lose(self, sentence: str) -> None:
        """Have nobody wait for a rank that is gone."""
        with self._closing:
            if self._is_closed or self._lost is not None:
                return
            self._lost = sentence
        self._seen.set()
        for process in self._processes:
            process.kill()
        leave_group()
        self._answers.put(None)
        self._on_lost()
