"""What is printed, as the log of what it is printed for."""

import io
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar


class LineLog(io.TextIOBase):
    """A text stream that hands on whole lines; those of several threads do not mix."""

    def __init__(self, on_lines: Callable[[str], object]) -> None:
        self._on_lines, self._begun = on_lines, threading.local()

    def write(self, text: str) -> int:
        lines, newline, self._begun.line = (getattr(self._begun, "line", "") + text).rpartition(
            "\n"
        )
        if newline:
            self._on_lines(lines + newline)
        return len(text)


class ContextLog(io.TextIOBase):
    """A text stream to the log of the current context (`contextvars`), or else to stderr."""

    def __init__(self) -> None:
        self._log: ContextVar[LineLog | None] = ContextVar("log", default=None)

    def show_in(self, log: LineLog) -> None:
        """Have what this context, and those copied from it, print go to a log."""
        self._log.set(log)

    def write(self, text: str) -> int:
        return (self._log.get() or sys.stderr).write(text)

    def flush(self) -> None:
        sys.stderr.flush()
