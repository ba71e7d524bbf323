"""Processes of a real run are killed at random moments: one plain error in time, and none left.

`FAULT_POINTS=50 scripts/test tests/training/test_faults.py` strikes fifty times, at other moments.
"""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from src.training.supervise.failure import TrainingError
from src.training.supervise.supervisor import run_workers
from tests.training import faults
from tests.training.processes import session_processes
from tests.training.runs import CURVE, on_processes

NUM_POINTS = int(os.environ.get("FAULT_POINTS", "1"))
START_SECONDS = 7.0
"""About as long as a run takes until its first steps: faults come before them and after."""
PLACE = r"(after step \d+|before its first step ended)"


class Strike(threading.Thread):
    """Kills or stops one process of a run, a while after it is there."""

    def __init__(
        self,
        run_dir: Path,
        *,
        rank: int | None,
        seconds: float,
        has_word: bool = True,
        number: signal.Signals = signal.SIGKILL,
    ) -> None:
        """Without a rank it is torch's agent; `has_word` waits until the rank has begun."""
        super().__init__(daemon=True)
        self._run_dir, self._rank, self._seconds = run_dir, rank, seconds
        self._has_word, self._number = has_word, number
        self.struck = 0.0

    def run(self) -> None:
        while (pid := self._find()) is None:
            time.sleep(0.02)
        time.sleep(self._seconds)
        self.struck = time.monotonic()
        os.kill(pid, self._number)

    def _find(self) -> int | None:
        for pid in session_processes(str(self._run_dir)):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            is_agent = b"src.training.supervise.agent" in command
            if self._rank is None and is_agent:
                return pid
            word = self._run_dir / "ranks" / f"{self._rank}.json"
            if word.is_file() != self._has_word:
                continue
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if not is_agent and b"RANK=%d" % (self._rank or 0) in environment:
                return pid
        return None


def fail(make_settings, run_dir: Path, strike: Strike) -> tuple[str, float]:
    """Return the error of a run that is struck, and how long after the strike it came."""
    run_dir.mkdir()
    strike.start()
    with pytest.raises(TrainingError) as error:
        run_workers(
            on_processes(make_settings(**{**CURVE, "num_train_epochs": 5000}), 2),
            run_dir,
            on_metric=lambda record: None,
        )
    return str(error.value), time.monotonic() - strike.struck


@pytest.mark.timeout(60 * (NUM_POINTS + 2))
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_at_any_moment_is_named(tmp_path: Path, make_settings, rank: int):
    numbers = random.Random(rank)
    for point in range(NUM_POINTS):
        run_dir = tmp_path / f"run-{point}"
        strike = Strike(run_dir, rank=rank, seconds=numbers.uniform(0, 2 * START_SECONDS))
        error, seconds = fail(make_settings, run_dir, strike)
        assert session_processes(str(tmp_path)) == []
        assert seconds < 5
        assert re.match(rf"rank {rank} was killed by SIGKILL {PLACE}", error), error


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_before_its_first_word_is_named(tmp_path: Path, make_settings, rank: int):
    strike = Strike(tmp_path / "run", rank=rank, seconds=0, has_word=False)
    error, seconds = fail(make_settings, tmp_path / "run", strike)
    assert session_processes(str(tmp_path)) == []
    assert seconds < 5
    assert error.startswith(f"rank {rank} was killed by SIGKILL before its first step ended")


def test_a_rank_frozen_before_its_first_word_is_named(tmp_path: Path, make_settings):
    os.environ["FROZEN_SECONDS"] = "8"
    strike = Strike(tmp_path / "run", rank=1, seconds=0, has_word=False, number=signal.SIGSTOP)
    error, seconds = fail(make_settings, tmp_path / "run", strike)
    assert session_processes(str(tmp_path)) == []
    assert seconds < 8 + 5
    assert error.startswith("rank 1 is frozen before its first step ended: no sign of it")


@pytest.mark.timeout(60 * (NUM_POINTS + 2))
def test_a_killed_agent_leaves_none(tmp_path: Path, make_settings):
    numbers = random.Random(2)
    for point in range(NUM_POINTS):
        run_dir = tmp_path / f"run-{point}"
        strike = Strike(run_dir, rank=None, seconds=numbers.uniform(0, 2 * START_SECONDS))
        error, seconds = fail(make_settings, run_dir, strike)
        assert session_processes(str(tmp_path)) == []
        assert seconds < 2
        assert re.match(rf"the agent of the ranks was killed by SIGKILL {PLACE}", error), error


def test_a_frozen_agent_keeps_no_run_waiting(tmp_path: Path, make_settings):
    """It is frozen while the rank takes its last step; what the rank leaves is all there."""
    os.environ["FAULT"] = "0:step1:stop-agent"
    (tmp_path / "run").mkdir()
    ended: list[float] = []
    output = run_workers(
        on_processes(make_settings(**CURVE, max_steps=1, run_validation=False), 1),
        tmp_path / "run",
        on_metric=lambda record: ended.append(time.monotonic()),
        worker=faults.MODULE,
    )
    assert (output / "adapter_model.safetensors").is_file()
    assert time.monotonic() - ended[0] < 15
    assert session_processes(str(tmp_path)) == []


DONE = """
import sys, threading, time
from pathlib import Path
from src.training import worker
worker.run_rank = lambda *_: threading.Thread(target=time.sleep, args=(60,)).start()
print("done", end="")
worker.main(Path(sys.argv[1]))
"""


def test_a_rank_that_is_done_leaves_at_once(tmp_path: Path, make_settings):
    """The interpreter takes seconds to end, and a rank shows no sign of life meanwhile."""
    make_settings().save(tmp_path / "settings.json")
    command = [sys.executable, "-c", DONE, str(tmp_path / "settings.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout[-4:]) == (0, "done"), done.stderr


def test_a_rank_frozen_before_its_first_step_is_named(tmp_path: Path, make_settings):
    os.environ |= {"FAULT": "1:start:stop", "FROZEN_SECONDS": "10"}
    (tmp_path / "run").mkdir()
    with pytest.raises(TrainingError, match=r"^rank 1 is frozen before its first step ended"):
        run_workers(
            on_processes(make_settings(**CURVE), 2),
            tmp_path / "run",
            on_metric=lambda record: None,
            worker=faults.MODULE,
        )
    assert session_processes(str(tmp_path)) == []
