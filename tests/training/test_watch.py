"""What the supervisor makes of the words of the ranks."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from src.training.supervise.failure import RankWatch, TrainingError
from src.training.supervise.heartbeat import RankStatus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ranks").mkdir()
    return tmp_path / "ranks"


def tell(folder: Path, *, step: int, work: int = 1, beat: int = 0, rank: int = 0) -> None:
    word = {"pid": os.getpid(), "step": step, "work": work, "beat": beat}
    (folder / f"{rank}.json").write_text(json.dumps(word))


def poll_until(watch: RankWatch, seconds: float, *, folder: Path, step: int) -> None:
    """Poll for so long, with a rank that lives and does not get any further."""
    deadline = time.monotonic() + seconds
    beat = 0
    while time.monotonic() < deadline:
        beat += 1
        tell(folder, step=step, beat=beat)
        watch.wait(0)
        time.sleep(0.01)


def test_the_steps_before_a_resume_are_no_measure(folder: Path):
    """The first step after a thousand of another process takes as long as a first step."""
    watch = RankWatch(folder, 1, [], patience=0.1)
    watch.wait(0)
    poll_until(watch, 0.2, folder=folder, step=1000)
    poll_until(watch, 0.1, folder=folder, step=1001)
    with pytest.raises(TrainingError, match=r"any further for .* after step 1002"):
        poll_until(watch, 10, folder=folder, step=1002)


def test_patience_is_ten_median_steps(folder: Path):
    watch = RankWatch(folder, 1, [], patience=0.1)
    for step in (1, 2, 3, 6):
        poll_until(watch, 0.1 if step < 3 else 0.3, folder=folder, step=step)
    started = time.monotonic()
    with pytest.raises(TrainingError, match="no rank has come any further for 1 s after step 6"):
        poll_until(watch, 10, folder=folder, step=6)
    assert time.monotonic() - started > 0.5


def test_the_rank_that_ended_first_is_named(folder: Path):
    """The launcher ends the others at once, so that all are gone when this process looks again."""
    for first in (0, 1, 1, 0):
        ranks = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
        watch = RankWatch(folder, 2, [process.pid for process in ranks], patience=60)
        watch.wait(0)
        for process in (ranks[first], ranks[1 - first]):
            process.kill()
            process.wait()
        watch.wait(0)
        watch.close()
        assert watch.is_over(is_done=True)
        assert str(watch.failure(-9)).startswith(f"rank {first} ended without a word")


@pytest.mark.parametrize("is_user_error", [True, False])
def test_a_failure_of_another_machines_rank_ends_the_run(folder: Path, is_user_error: bool):
    """This machine's ranks may wait for it in a collective for minutes."""
    watch = RankWatch(folder, 1, [], patience=60)
    tell(folder, step=3)
    watch.wait(0)
    assert not watch.is_over(is_done=False)
    error = {"time": 0.0, "step": 3, "is_user_error": is_user_error, "error": "no such layer"}
    (folder / "1.error.json").write_text(json.dumps(error))
    watch.wait(0)
    assert watch.is_over(is_done=False)
    sentence = "no such layer" if is_user_error else "rank 1 failed after step 3: no such layer"
    assert str(watch.failure(None)) == sentence


def test_a_busy_rank_is_not_stuck(tmp_path: Path):
    """Saving takes as long as it takes; each beat counts as work meanwhile."""
    status = RankStatus(tmp_path, rank=0)

    def work() -> int:
        time.sleep(1.2)
        return json.loads((tmp_path / "ranks" / "0.json").read_text())["work"]

    with status.busy():
        assert work() > 0
    told = work()
    assert work() == told
