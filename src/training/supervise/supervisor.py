"""Starts the ranks of this machine, follows them, and waits for the adapter.

It loads no torch: this process holds no GPU memory while the ranks need it.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from src.settings import TrainSettings
from src.training.supervise.failure import (
    SHARE_SECONDS,
    Failure,
    TrainingError,
    failure_without_agent,
)
from src.training.supervise.heartbeat import HeartbeatWatch
from src.training.supervise.run_folder import MetricsTail, RunFolder
from src.training.supervise.server_watch import Server, ServerWatch

ROOT = Path(__file__).resolve().parents[3]
WORKER = "src.training.worker"
POLL_SECONDS = 0.1
TERMINATE_SECONDS = 2.0
GONE_SECONDS = 5.0
"""Time for the agent to end after the last rank, beside what it waits for other machines."""
CANCEL_SECONDS = 2.5
SHUTDOWN_SECONDS = 7.0
"""Cog's server ends its worker ten seconds after it is asked to end."""


def run_workers(
    settings: TrainSettings,
    run_dir: Path,
    *,
    on_metric: Callable[[dict[str, Any]], None],
    worker: str = WORKER,
    server: Server | None = None,
) -> Path | None:
    """Train with one rank per device and return the folder of the finished adapter.

    `worker` is the module that each rank runs; the end of `server` ends the run, by default that of
    Cog's. Of several machines only the one with the data gets the adapter, the others None. Raises
    UserError for what the user can change, TrainingError for every other failure; whatever happens,
    no process of the run is left on this machine when this returns.
    """
    folder, environment = RunFolder(run_dir), settings.environment
    keeps_adapter = settings.checkpoint_folder is not None
    settings.save(folder.settings)
    agent = Agent(folder, worker, environment.num_processes or 1)
    heartbeats = HeartbeatWatch(environment.frozen_seconds)
    server = server or ServerWatch(environment.port, os.getppid())
    metrics = MetricsTail(folder, on_metric)
    gone_seconds = GONE_SECONDS + (2 * SHARE_SECONDS if environment.num_nodes > 1 else 0)
    last_alive = time.monotonic()
    try:
        while agent.is_running() and time.monotonic() - last_alive < gone_seconds:
            time.sleep(POLL_SECONDS)
            metrics.poll()
            if not agent.have_ranks_ended():
                last_alive = time.monotonic()
            if failure := heartbeats.check(agent.statuses()):
                folder.write_failure(asdict(failure))
                break
            if keeps_adapter and server.is_gone():
                _stop(folder, agent, SHUTDOWN_SECONDS)
                break
    except BaseException as error:
        # A server that ends takes no more metrics, which may be the first sign of its end.
        # Cog's cancel is no Exception.
        if keeps_adapter and (isinstance(error, Exception) or server.is_gone(now=True)):
            _stop(folder, agent, SHUTDOWN_SECONDS)
        elif keeps_adapter and settings.save_on_cancel:
            _stop(folder, agent, CANCEL_SECONDS, goes_on=False)
        raise
    finally:
        agent.end()
    metrics.poll()
    if folder.output.is_dir():
        return folder.output
    if agent.exit_code == 0 and not settings.train_data:
        return None
    if stopped := _stopped(folder):
        raise stopped
    reported = folder.failure()
    failure = Failure(**reported) if reported else failure_without_agent(agent.exit_code, folder)
    raise failure.error()


def _stop(folder: RunFolder, agent: "Agent", seconds: float, *, goes_on: bool = True) -> None:
    """Ask the run to keep its adapter, and wait until it has or the time is over.

    One that is to go on later has the time to save its state too, after the step that runs.
    """
    folder.ask_to_stop()
    deadline = time.monotonic() + seconds
    while agent.is_running() and time.monotonic() < deadline:
        if not goes_on and _stopped(folder) is not None:
            break
        time.sleep(POLL_SECONDS / 2)
    if (stopped := _stopped(folder)) is not None:
        with suppress(OSError):  # a server that ends takes no lines
            print(stopped, flush=True)


def _stopped(folder: RunFolder) -> TrainingError | None:
    """Return how to report a run that was asked to end and has kept its adapter."""
    kept = folder.stopped() if folder.is_asked_to_stop() else None
    if kept is None:
        return None
    step, place = kept
    return TrainingError(
        f"stopped early after step {step}: the adapter is in CHECKPOINT_DIR, "
        f"{place.parent.name}/{place.name}; resume_from=auto goes on from the last checkpoint"
    )


class Agent:
    """Torch's agent as a child process, which starts the ranks and which none of them outlives."""

    def __init__(self, folder: RunFolder, worker: str, num_ranks: int) -> None:
        self.exit_code: int | None = None
        """How the agent ended, below 0 by a signal; None if it had to be killed."""
        self._folder, self._num_ranks = folder, num_ranks
        command = ("-u", "-m", "src.training.supervise.agent", str(folder.settings), worker)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # Secrets are for fetching the base model, which is done.
        environment = {name: text for name, text in os.environ.items() if name != "HF_TOKEN"}
        self._process = subprocess.Popen(
            [sys.executable, *command, str(os.getpid())],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._pump = threading.Thread(target=self._print_lines, daemon=True)
        self._pump.start()

    def is_running(self) -> bool:
        """Whether the agent has not ended."""
        self.exit_code = self._process.poll()
        return self.exit_code is None

    def statuses(self) -> dict[int, dict[str, Any]]:
        """Return what each rank reported last; nothing yet of those that have only been started."""
        statuses = self._folder.statuses()
        with suppress(psutil.NoSuchProcess):
            if len(statuses) < self._num_ranks and psutil.Process(self._process.pid).children():
                return {rank: statuses.get(rank, {}) for rank in range(self._num_ranks)}
        return statuses

    def have_ranks_ended(self) -> bool:
        """Whether all ranks have begun and ended."""
        pids = [status["pid"] for status in self._folder.statuses().values()]
        return len(pids) == self._num_ranks and not any(map(_is_alive, pids))

    def end(self) -> None:
        """End every process, however often this thread is interrupted meanwhile."""
        # Cog raises its cancellation in this thread, a second one even while cleaning up.
        cleaner = threading.Thread(target=self._end)
        interruption: BaseException | None = None
        cleaner.start()
        while cleaner.is_alive():
            try:
                cleaner.join(timeout=POLL_SECONDS)
            except BaseException as error:
                interruption = error
        if interruption is not None:
            raise interruption
        self._pump.join(timeout=5)

    def _end(self) -> None:
        """Have the agent end its ranks and tell other machines, or the kernel end them with it."""
        if self.is_running():
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(TERMINATE_SECONDS)
        self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + TERMINATE_SECONDS
        pids = [status["pid"] for status in self._folder.statuses().values()]
        while any(map(_is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 10)

    def _print_lines(self) -> None:
        """Print lines as they come: Cog logs only what this process prints.

        A server that ends takes no more lines; the ranks go on writing them, and must not wait.
        """
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with suppress(OSError):
                    print(line.decode("utf-8", "replace").rstrip("\r\n"), flush=True)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
