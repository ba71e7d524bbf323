"""A job as a process of its own, and what it says."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120.0
"""Longer than anything that is waited for takes."""


class Job:
    """`python -m MODULE` in a session of its own, with pipes to it."""

    def __init__(self, module: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.messages: list[dict[str, Any]] = []
        self._arrived: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, **message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def wait_for(self, is_meant: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the next message that is meant; all are kept in `messages`."""
        deadline = time.monotonic() + SECONDS
        while True:
            message = self._arrived.get(timeout=deadline - time.monotonic())
            assert message is not None, f"the job has ended: {self.messages[-3:]}"
            if is_meant(message):
                return message

    def event(self, name: str, **fields: Any) -> dict[str, Any]:
        """Return the next message of an event that has these fields."""
        asked = {"event": name, **fields}
        return self.wait_for(lambda message: asked.items() <= message.items())

    def close(self) -> int:
        """End its stdin and return the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(SECONDS)

    def kill(self) -> None:
        """Kill the process and its group, and wait for its end."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)

    def of(self, id: str, event: str) -> list[dict[str, Any]]:
        """Return the messages so far of one request and event."""
        return [m for m in self.messages if m["event"] == event and m.get("id") == id]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            self.messages.append(message)
            self._arrived.put(message)
        self._arrived.put(None)
