"""The folder of a run on one machine, in which its supervisor, its agent and its ranks meet."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from src.files.atomic import replacing_file


class RunFolder:
    """Every file of a run: its path, who writes it, and how it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        """What the ranks are to do: `TrainSettings`, by the supervisor."""
        self.data = path / "data"
        """The tokenized examples, by one rank; all of this machine map them."""
        self.metrics = path / "metrics.jsonl"
        """A line for each logged step and validation, by the main rank."""
        self.output = path / "output"
        """The finished adapter with all that belongs to it, by the main rank."""
        self.agent_files = path / "agent"
        """What torch's agent needs for itself."""
        self._ranks = path / "ranks"
        self._failure = path / "failure.json"
        self._stop = path / "stop"
        self._stopped = path / "stopped.json"

    def write_status(self, local_rank: int, status: dict[str, Any]) -> None:
        """Replace what a rank reports of itself."""
        self._write_rank(f"{local_rank}.json", status)

    def statuses(self) -> dict[int, dict[str, Any]]:
        """Return what each rank of this machine reported last, by its local rank."""
        return self._read_ranks("*[0-9].json")

    def write_error(self, local_rank: int, error: dict[str, Any]) -> None:
        """Leave the error that ends a rank."""
        self._write_rank(f"{local_rank}.error.json", error)

    def errors(self) -> dict[int, dict[str, Any]]:
        """Return the errors that ended ranks of this machine, by their local rank."""
        return self._read_ranks("*.error.json")

    def write_failure(self, failure: dict[str, Any]) -> None:
        """Leave why the run failed: by the agent, or by the supervisor where ranks are frozen."""
        _write(self._failure, failure)

    def failure(self) -> dict[str, Any] | None:
        """Return why the run failed, if that is known."""
        return _read(self._failure)

    def ask_to_stop(self) -> None:
        """Ask the ranks to end and keep their adapter."""
        self._stop.touch()

    def is_asked_to_stop(self) -> bool:
        """Whether the ranks are to end and keep their adapter."""
        return self._stop.exists()

    def write_stopped(self, step: int, folder: Path) -> None:
        """Report where the adapter of a run lies that was asked to stop; by the main rank."""
        _write(self._stopped, {"step": step, "folder": str(folder)})

    def stopped(self) -> tuple[int, Path] | None:
        """Return the last step and the folder of the adapter of a run that was asked to stop."""
        kept = _read(self._stopped)
        return None if kept is None else (kept["step"], Path(kept["folder"]))

    def _write_rank(self, name: str, record: dict[str, Any]) -> None:
        self._ranks.mkdir(exist_ok=True)
        _write(self._ranks / name, record)

    def _read_ranks(self, pattern: str) -> dict[int, dict[str, Any]]:
        found = {int(path.name.split(".")[0]): _read(path) for path in self._ranks.glob(pattern)}
        return {rank: record for rank, record in sorted(found.items()) if record is not None}


class MetricsTail:
    """Hands on each line that rank 0 adds to its metrics file."""

    def __init__(self, folder: RunFolder, on_metric: Callable[[dict[str, Any]], None]) -> None:
        self._path, self._on_metric, self._position = folder.metrics, on_metric, 0

    def poll(self) -> None:
        """Hand on the lines since the last poll."""
        with suppress(FileNotFoundError), self._path.open() as file:  # not begun yet
            file.seek(self._position)
            while (line := file.readline()).endswith("\n"):
                self._position = file.tell()
                self._on_metric(json.loads(line))


def _write(path: Path, record: dict[str, Any]) -> None:
    with replacing_file(path, is_durable=False) as partial:  # it may be read meanwhile
        partial.write_text(json.dumps(record))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
