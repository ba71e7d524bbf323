"""The heartbeat of a rank: what it reports of itself, and how its silence is noticed."""

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from src.errors import UserError
from src.training.supervise.failure import KILLED, Failure, after_step
from src.training.supervise.run_folder import RunFolder

HEARTBEAT_SECONDS = 1.0
BUSY_SECONDS = 900.0
"""The longest that saving, or a reply to the validation prompt, may take."""
FIRST_PASS_SECONDS = 900.0
"""Time for the first pass, before there are steps to tell how long one takes."""


class RankStatus:
    """What one rank reports of itself, in the run's folder."""

    def __init__(self, folder: RunFolder, *, rank: int, local_rank: int) -> None:
        self.rank = rank
        """Among all machines."""
        self._folder, self._local_rank = folder, local_rank
        self._step = self._work = self._heartbeat = 0
        self._busy_until = 0.0
        self._writing = threading.Lock()
        self.note_step(0)
        threading.Thread(target=self._beat_for_ever, daemon=True).start()

    def note_step(self, step: int) -> None:
        """Report the last optimizer step that has ended."""
        self._step = step
        self._report()

    def note_work(self) -> None:
        """Report, with the next heartbeat, that this rank has come a little further."""
        self._work += 1

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Let each heartbeat count as work, in what takes long and cannot report how far it is."""
        self._busy_until = time.monotonic() + BUSY_SECONDS
        try:
            yield
        finally:
            self._busy_until = 0.0

    def fail(self, error: BaseException) -> None:
        """Report why this rank ends: to the supervisor, or in the log where the disk is full."""
        is_user_error = isinstance(error, UserError)
        text = str(error) if is_user_error else f"{type(error).__name__}: {error}"
        record = {"rank": self.rank, "step": self._step, "time": time.time()}
        record |= {"is_user_error": is_user_error, "error": text}
        try:
            self._folder.write_error(self._local_rank, record)
        except OSError as why:
            print(f"rank {self.rank}: {text} (not reported: {why})", file=sys.stderr, flush=True)

    def _beat_for_ever(self) -> None:
        """Show that this process runs at all; a frozen one shows nothing."""
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            self._heartbeat += 1
            if time.monotonic() < self._busy_until:
                self.note_work()
            self._report()

    def _report(self) -> None:
        status = {"rank": self.rank, "pid": os.getpid(), "step": self._step}
        status |= {"work": self._work, "heartbeat": self._heartbeat}
        with self._writing, contextlib.suppress(OSError):
            self._folder.write_status(self._local_rank, status)


class HeartbeatWatch:
    """Notices ranks without a heartbeat, and a run in which no rank comes any further."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._seen: dict[Any, tuple[object, float]] = {}
        self._step, self._step_ended = 0, 0.0
        self._step_times: deque[float] = deque(maxlen=1000)

    def check(self, statuses: Mapping[int, Mapping[str, Any]]) -> Failure | None:
        """Return what is wrong with the ranks; one that was only started has an empty status."""
        for local_rank, status in statuses.items():
            silent = self._unchanged_for(local_rank, status.get("heartbeat"))
            if silent > self._timeout:
                rank, place = status.get("rank", local_rank), after_step(status.get("step", 0))
                sentence = f"rank {rank} is frozen {place}: no sign of it for {silent:.0f} s"
                return Failure(sentence, KILLED)
        step = min((status.get("step", 0) for status in statuses.values()), default=0)
        self._note_step(step)
        progress = [(status.get("step"), status.get("work")) for status in statuses.values()]
        stuck = self._unchanged_for("progress", progress)
        has_begun = bool(statuses) and all(status.get("work") for status in statuses.values())
        if has_begun and stuck > self._stuck_timeout():
            sentence = f"no rank has come any further for {stuck:.0f} s {after_step(step)}"
            return Failure(sentence, KILLED)
        return None

    def _unchanged_for(self, what: object, value: object) -> float:
        """Return for how many seconds something has been the same."""
        now = time.monotonic()
        if what not in self._seen or self._seen[what][0] != value:
            self._seen[what] = value, now
        return now - self._seen[what][1]

    def _note_step(self, step: int) -> None:
        if step <= self._step:
            return
        now = time.monotonic()
        if self._step:  # what came before the first one was no step, or was another run's
            self._step_times.append((now - self._step_ended) / (step - self._step))
        self._step, self._step_ended = step, now

    def _stuck_timeout(self) -> float:
        # The first pass may take much longer than a step: it finds what memory holds.
        if not self._step_times:
            return FIRST_PASS_SECONDS
        return max(self._timeout, 10 * median(self._step_times))
