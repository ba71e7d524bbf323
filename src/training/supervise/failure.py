"""What the supervisor sees of a run: which rank failed and why, and the metrics as they come."""

import json
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from src.errors import UserError
from src.training.supervise.exit_order import ExitOrder


class TrainingError(RuntimeError):
    """A run that failed, with the rank and its last error in one sentence."""


GLANCE_SECONDS = 0.01
"""Between two looks at the processes, where the kernel does not tell at once."""
GONE_SECONDS = 5.0
"""Time for the launcher to end after the last rank."""
FIRST_PASS_SECONDS = 900.0
"""Time for the first pass, before there are steps to tell how long one takes."""


@dataclass
class _Sign:
    """Something that changes as long as all is well."""

    value: Any
    since: float

    def note(self, value: Any, now: float) -> float:
        """Return for how many seconds it has been the same."""
        if value != self.value:
            self.value, self.since = value, now
        return now - self.since


class _Pace:
    """How long a step takes, from when steps were seen to end."""

    def __init__(self) -> None:
        self._step, self._since = 0, 0.0
        self._seconds: deque[float] = deque(maxlen=1000)

    def note(self, step: int, now: float) -> None:
        """Take note of the last step that has ended."""
        if step <= self._step:
            return
        if self._step:  # what came before the first one was no step, or was another run's
            self._seconds.append((now - self._since) / (step - self._step))
        self._step, self._since = step, now

    def seconds(self) -> float | None:
        """Return the median of a step, if there is one."""
        return median(self._seconds) if self._seconds else None


class RankWatch:
    """Notes which rank ended first, from the files that the ranks leave and from the kernel."""

    def __init__(
        self, folder: Path, num_ranks: int, spawned: Sequence[int], *, patience: float
    ) -> None:
        """Watch the first ranks, which run on this machine; their processes come as they start.

        A rank without a sign of life for `patience` seconds is frozen.
        """
        self._folder, self._num_ranks, self._spawned = folder, num_ranks, spawned
        self._alive = set(range(num_ranks))
        self._exits = ExitOrder()
        self._ended_first: list[int] = []
        self._patience = patience
        now = time.monotonic()
        self._beats = {rank: _Sign(None, now) for rank in range(num_ranks)}
        self._progress = _Sign(None, now)
        self._pace = _Pace()
        self._all_gone_since: float | None = None

    def wait(self, seconds: float) -> None:
        """Note which ranks end within so long; the first one ends the wait.

        Raises TrainingError when a rank shows no sign of life, or none gets any further.
        """
        self._check_signs()
        pids = {rank: pid for rank in sorted(self._alive) if (pid := self._pid(rank)) is not None}
        self._exits.watch(pids.values())
        deadline = time.monotonic() + seconds
        order: list[int] = []
        while True:
            order += self._exits.wait(min(seconds, GLANCE_SECONDS))
            ended = [rank for rank, pid in pids.items() if _is_gone(pid)]
            if ended or time.monotonic() >= deadline:
                break
        # Once one has ended the launcher ends the others, also between the kernel's word and our
        # look. What the kernel never told of had ended before it was asked.
        order += self._exits.wait(0)
        place = {pid: number for number, pid in enumerate(order)}
        ended.sort(key=lambda rank: place.get(pids[rank], -1))
        self._alive.difference_update(ended)
        if not self._ended_first:
            self._ended_first = ended
        if not self._alive and self._all_gone_since is None:
            self._all_gone_since = time.monotonic()

    def close(self) -> None:
        """Watch no process any more."""
        self._exits.close()

    def is_over(self, *, is_done: bool) -> bool:
        """Whether the run has ended, though this machine's launcher may not tell yet.

        It looks at its ranks once a second, and takes a while to end; only of a run that is not
        done it has something to say.
        """
        since = self._all_gone_since
        if since is not None and time.monotonic() - since > (0 if is_done else GONE_SECONDS):
            return True
        return any(rank >= self._num_ranks for rank in self._errors())

    def _check_signs(self) -> None:
        now = time.monotonic()
        words = {rank: self._read(rank) for rank in sorted(self._alive)}
        for rank, word in words.items():
            has_started = bool(word) or rank < len(self._spawned)
            silent = self._beats[rank].note((has_started, word.get("beat")), now)
            if has_started and silent > self._patience:
                place = _place(word.get("step", 0))
                raise TrainingError(
                    f"rank {rank} is frozen {place}: no sign of it for {silent:.0f} s"
                )
        steps = [word.get("step", 0) for word in words.values()]
        self._pace.note(min(steps, default=0), now)
        stuck = self._progress.note([(w.get("step"), w.get("work")) for w in words.values()], now)
        # The first pass may take much longer than a step: it finds what memory holds.
        pace = self._pace.seconds()
        patience = FIRST_PASS_SECONDS if pace is None else max(self._patience, 10 * pace)
        has_begun = bool(words) and all(word.get("work") for word in words.values())
        if has_begun and stuck > patience:
            raise TrainingError(
                f"no rank has come any further for {stuck:.0f} s {_place(min(steps, default=0))}"
            )

    def failure(self, return_code: int | None) -> Exception:
        """Return the error that tells why the run failed."""
        errors = self._errors()
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

    def _errors(self) -> dict[int, dict[str, Any]]:
        return {
            int(path.name.split(".")[0]): json.loads(path.read_text())
            for path in self._folder.glob("*.error.json")
        }

    def _pid(self, rank: int) -> int | None:
        # Before its first word there is only the launcher's, whose lines may come apart.
        spawned = self._spawned[rank] if rank < len(self._spawned) else None
        return self._read(rank).get("pid", spawned)

    def _read(self, rank: int) -> dict[str, Any]:
        try:
            return json.loads((self._folder / f"{rank}.json").read_text())
        except (OSError, ValueError):
            return {}


def _is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def _place(step: int) -> str:
    return f"after step {step}" if step else "before its first step ended"


def _reason(return_code: int | None) -> str:
    # The launcher tells the code of whichever rank it saw first; only a signal says something.
    if return_code is None or return_code >= 0:
        return "its process was killed or crashed (often: the machine ran out of memory)"
    name = signal.Signals(-return_code).name
    hint = " (often: the machine ran out of memory)" if -return_code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"


class MetricsTail:
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
