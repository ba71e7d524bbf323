"""The log of a training on the terminal of `cog train`, which hides what train() prints."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

HIDING = ("warn", "warning", "error")
"""Values of COG_LOG_LEVEL at which Cog shows no line of train(), but all of its child processes."""


class _Both:
    """Writes to the log of the request and to the stderr that child processes inherit."""

    def __init__(self, log: TextIO) -> None:
        self._log, self._line = log, ""

    def write(self, text: str) -> int:
        # Cog takes each write for a line.
        lines, newline, self._line = (self._line + text).rpartition("\n")
        with suppress(OSError):  # a server that ends reads no more
            os.write(2, (lines + newline).encode("utf-8", "replace"))
        return self._log.write(text)

    def flush(self) -> None:
        self._log.flush()


@contextmanager
def shown_by_cog_train() -> Iterator[None]:
    """Show what is printed meanwhile on the inherited stderr too, where Cog would hide it."""
    if os.environ.get("COG_LOG_LEVEL") not in HIDING or "RUST_LOG" in os.environ:
        yield
        return
    with redirect_stdout(_Both(sys.stdout)):
        yield
