"""A command with all its processes: its lines are printed, and none of it outlives this process.

Standard library only: this process holds no GPU memory while the ranks need it.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

POLL_SECONDS = 0.1
TERMINATE_SECONDS = 2.0
ROOT = Path(__file__).resolve().parents[3]

_RETURN_CODE = re.compile(r"exits with return code = (-?\d+)")
_SPAWNED = re.compile(r"process (\d+) spawned with command")
# What DeepSpeed's launcher says of itself on every start.
_NOISE = re.compile(r"\[INFO\]|Setting ds_accelerator|^\s*$|\[config_cpu_affinity")


class Session:
    """Runs a command under a guard that ends it together with this process."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.return_code: int | None = None
        """Of the first process that DeepSpeed's launcher saw fail."""
        self.spawned: list[int] = []
        """Processes that DeepSpeed's launcher has started, in the order of their ranks."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "src.training.supervise.guard", *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._pump = threading.Thread(target=self._print_lines, daemon=True)
        self._pump.start()

    def is_running(self) -> bool:
        """Whether the command has not ended."""
        return self._process.poll() is None

    def end(self) -> None:
        """End every process, however often this thread is interrupted meanwhile."""
        # Cog raises its cancellation in this thread, a second one even while cleaning up.
        cleaner = threading.Thread(target=self._terminate)
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

    def _terminate(self) -> None:
        if self.is_running():
            self._signal(signal.SIGTERM)
            deadline = time.monotonic() + TERMINATE_SECONDS
            while time.monotonic() < deadline and self.is_running():
                time.sleep(POLL_SECONDS / 2)
        self._signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _print_lines(self) -> None:
        """Print lines as they come: Cog logs only what this process prints.

        A server that ends takes no more lines; the command goes on saying them, and must not wait.
        """
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for raw in lines:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                if found := _RETURN_CODE.search(line):
                    self.return_code = self.return_code or int(found[1])
                if found := _SPAWNED.search(line):
                    self.spawned.append(int(found[1]))
                if not _NOISE.search(line):
                    with suppress(OSError):
                        print(line, flush=True)
