"""The files by which a rank tells the supervisor how far it has come, and why it failed."""

import json
import os
import time
from pathlib import Path

from src.errors import UserError


class RankStatus:
    """Word of one rank, in the run's folder."""

    def __init__(self, run_dir: Path, *, rank: int) -> None:
        self.rank = rank
        self._step = 0
        self._folder = run_dir / "ranks"
        self._folder.mkdir(exist_ok=True)
        self.note_step(0)

    def note_step(self, step: int) -> None:
        """Tell which optimizer step was the last to end."""
        self._step = step
        self._write(f"{self.rank}.json", {"pid": os.getpid(), "step": step})

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

    def _write(self, name: str, record: dict[str, object]) -> None:
        """Write a file that is read while it is replaced."""
        temporary = self._folder / f".{name}.{self.rank}"
        temporary.write_text(json.dumps(record))
        temporary.rename(self._folder / name)
