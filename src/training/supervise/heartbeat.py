"""The files by which a rank tells the supervisor how far it has come, and why it failed."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from src.errors import UserError
from src.files.atomic import replacing_file

BEAT_SECONDS = 1.0
BUSY_SECONDS = 900.0
"""The longest that saving, or a reply to the validation prompt, may take."""


class RankStatus:
    """Word of one rank, in the run's folder."""

    def __init__(self, run_dir: Path, *, rank: int) -> None:
        self.rank = rank
        self._step = self._work = self._beat = 0
        self._busy_until = 0.0
        self._writing = threading.Lock()
        self._folder = run_dir / "ranks"
        self._folder.mkdir(exist_ok=True)
        self.note_step(0)
        threading.Thread(target=self._beat_for_ever, daemon=True).start()

    def note_step(self, step: int) -> None:
        """Tell which optimizer step was the last to end."""
        self._step = step
        self._tell()

    def note_work(self) -> None:
        """Tell, with the next beat, that this rank has come a little further."""
        self._work += 1

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Let each beat count as work, in what takes long and cannot tell how far it is."""
        self._busy_until = time.monotonic() + BUSY_SECONDS
        try:
            yield
        finally:
            self._busy_until = 0.0

    def fail(self, error: BaseException) -> None:
        """Tell why this rank ends."""
        is_user_error = isinstance(error, UserError)
        record = {
            "time": time.time(),
            "step": self._step,
            "is_user_error": is_user_error,
            "error": str(error) if is_user_error else f"{type(error).__name__}: {error}",
        }
        self._write(f"{self.rank}.error.json", record)

    def _beat_for_ever(self) -> None:
        """Show that this process runs at all; a frozen one shows nothing."""
        while True:
            time.sleep(BEAT_SECONDS)
            self._beat += 1
            if time.monotonic() < self._busy_until:
                self.note_work()
            self._tell()

    def _tell(self) -> None:
        with self._writing, contextlib.suppress(OSError):
            signs = {"step": self._step, "work": self._work, "beat": self._beat}
            self._write(f"{self.rank}.json", {"pid": os.getpid(), **signs})

    def _write(self, name: str, record: dict[str, object]) -> None:
        """Write a file that is read while it is replaced."""
        with replacing_file(self._folder / name, is_durable=False) as partial:
            partial.write_text(json.dumps(record))
