"""Starts one worker per device with DeepSpeed's launcher, watches them, and leaves none behind.

Standard library only: this process holds no GPU memory while the ranks need it.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.settings import TrainSettings

POLL_SECONDS = 0.1
TERMINATE_SECONDS = 2.0
ROOT = Path(__file__).resolve().parents[2]

_RETURN_CODE = re.compile(r"exits with return code = (-?\d+)")
# What DeepSpeed's launcher says of itself on every start.
_NOISE = re.compile(
    r"\[INFO\]|\[WARNING\] \[runner|Setting ds_accelerator|^\s*$|\[config_cpu_affinity"
)


class TrainingError(RuntimeError):
    """A run that failed, with the rank and its last error in one sentence."""


def run_workers(
    settings: TrainSettings,
    run_dir: Path,
    *,
    num_processes: int,
    on_gpus: bool,
    on_metric: Callable[[dict[str, Any]], None],
) -> Path:
    """Train with one worker per device and return the folder of the finished adapter.

    Raises UserError for what the user can change, TrainingError for every other failure; whatever
    happens, no process of the run is left when this returns.
    """
    settings_path = run_dir / "settings.json"
    settings.save(settings_path)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "src.training.guard"),
            *(sys.executable, "-u", "-m", "deepspeed.launcher.runner"),
            *("--num_gpus", str(num_processes), "--no_local_rank"),
            *("--master_addr", "127.0.0.1", "--master_port", str(_free_port())),
            *("--module", "src.training.worker", str(settings_path)),
        ],
        cwd=ROOT,
        env=_environment(num_processes, on_gpus=on_gpus),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log = _LogPump(process)
    ranks = _RankWatch(run_dir / "ranks", num_processes)
    metrics = _MetricsTail(run_dir / "metrics.jsonl", on_metric)
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            ranks.poll()
            metrics.poll()
        ranks.poll()
    finally:
        _end_session(process)
    log.join()
    metrics.poll()
    output = run_dir / "output"
    if not output.is_dir():
        raise ranks.failure(log.return_code)
    return output


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(num_processes: int, *, on_gpus: bool) -> dict[str, str]:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), environment.get("PYTHONPATH")])
    )
    environment.update(
        PYTHONUNBUFFERED="1",
        PYTHONWARNINGS="ignore::FutureWarning",  # of torch, about what DeepSpeed calls
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_OFFLINE="1",
    )
    # Secrets are for fetching the base model, which is done.
    environment.pop("HF_TOKEN", None)
    if not on_gpus:
        threads = max(1, (os.cpu_count() or 1) // num_processes)
        environment.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS=str(threads))
    return environment


class _LogPump:
    """Prints the workers' lines as they come: Cog logs only what this process prints."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.return_code: int | None = None
        self._process = process
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the last line is printed."""
        self._thread.join(timeout=5)

    def _pump(self) -> None:
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if found := _RETURN_CODE.search(line):
                self.return_code = self.return_code or int(found[1])
            if not _NOISE.search(line):
                print(line, flush=True)


class _RankWatch:
    """Notes which rank ended first, from the files that the ranks leave and from the kernel."""

    def __init__(self, folder: Path, num_ranks: int) -> None:
        self._folder = folder
        self._alive = set(range(num_ranks))
        self._ended_first: list[int] = []

    def poll(self) -> None:
        """Note the ranks that are gone since the last poll."""
        ended = [rank for rank in sorted(self._alive) if self._is_gone(rank)]
        self._alive.difference_update(ended)
        if not self._ended_first:
            self._ended_first = ended

    def failure(self, return_code: int | None) -> Exception:
        """Return the error that tells why the run failed."""
        errors = {
            int(path.name.split(".")[0]): json.loads(path.read_text())
            for path in self._folder.glob("*.error.json")
        }
        for error in errors.values():
            if error["is_user_error"]:
                return UserError(error["error"])
        silent = [rank for rank in self._ended_first if rank not in errors]
        if silent:
            rank = silent[0]
            step = self._read(rank).get("step", 0)
            return TrainingError(
                f"rank {rank} ended without a word {_place(step)}: {_reason(return_code)}"
            )
        if errors:
            rank, error = min(errors.items(), key=lambda item: item[1]["time"])
            return TrainingError(f"rank {rank} failed {_place(error['step'])}: {error['error']}")
        return TrainingError(
            f"the training ended before its first step: {_reason(return_code)}; "
            "the log above has the last words of the launcher"
        )

    def _is_gone(self, rank: int) -> bool:
        pid = self._read(rank).get("pid")
        if pid is None:
            return False
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state in "ZX"

    def _read(self, rank: int) -> dict[str, Any]:
        try:
            return json.loads((self._folder / f"{rank}.json").read_text())
        except (OSError, ValueError):
            return {}


def _place(step: int) -> str:
    return f"after step {step}" if step else "before its first step ended"


def _reason(return_code: int | None) -> str:
    # The launcher tells the code of whichever rank it saw first; only a signal says something.
    if return_code is None or return_code >= 0:
        return "its process was killed or crashed (often: the machine ran out of memory)"
    name = signal.Signals(-return_code).name
    hint = " (often: the machine ran out of memory)" if -return_code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"


class _MetricsTail:
    """Hands on each line that rank 0 adds to its metrics file."""

    def __init__(self, path: Path, on_metric: Callable[[dict[str, Any]], None]) -> None:
        self._path, self._on_metric, self._position = path, on_metric, 0

    def poll(self) -> None:
        """Hand on the lines since the last poll."""
        try:
            with self._path.open() as file:
                file.seek(self._position)
                while (line := file.readline()).endswith("\n"):
                    self._position = file.tell()
                    self._on_metric(json.loads(line))
        except FileNotFoundError:  # not begun yet
            return


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End every process of the run, however often this thread is interrupted meanwhile."""
    # Cog raises its cancellation in this thread, a second one even while cleaning up.
    cleaner = threading.Thread(target=_terminate, args=(process,))
    interruption: BaseException | None = None
    cleaner.start()
    while cleaner.is_alive():
        try:
            cleaner.join(timeout=POLL_SECONDS)
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


def _terminate(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + TERMINATE_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(POLL_SECONDS / 2)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return
