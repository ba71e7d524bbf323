"""JSON lines between a job and whoever started it: on stdin to the job, on stdout from it."""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

Message = Mapping[str, Any]


class Channel:
    """Keeps stdin and stdout for messages alone.

    What anything else prints goes to stderr, and what is started here inherits neither.
    """

    def __init__(self) -> None:
        self._input, self._output = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def send(self, message: Message) -> None:
        """Send a message, from any thread, after those that were sent before."""
        self._outbox.put(message)

    def receive(self, on_message: Callable[[dict[str, Any]], object]) -> None:
        """Call `on_message` with each message; returns at the end of stdin."""
        with open(self._input, "rb") as lines:
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError as error:
                    print(f"a message that is no JSON is left out: {error}", file=sys.stderr)
                    continue
                on_message(message)

    def close(self) -> None:
        """Return when everything that was sent is written."""
        self._outbox.put(None)
        self._writer.join()

    def _write(self) -> None:
        is_open, is_read = True, True
        while is_open:
            ready = [self._outbox.get()]
            while not self._outbox.empty():
                ready.append(self._outbox.get())
            if None in ready:
                is_open = False
            lines = "".join(f"{json.dumps(message)}\n" for message in ready if message is not None)
            rest = memoryview(lines.encode())
            while rest and is_read:
                try:
                    rest = rest[os.write(self._output, rest) :]
                except BrokenPipeError:  # the end of stdin comes with it
                    is_read = False
