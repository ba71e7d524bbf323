"""What the supervisor makes of what the ranks and the agent tell it."""

import io
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from src.errors import UserError
from src.training.supervise.failure import (
    ENDED,
    ERROR,
    KILLED,
    USER_ERROR,
    Failure,
    TrainingError,
    failure_without_agent,
    first_failure,
)
from src.training.supervise.heartbeat import HeartbeatWatch, RankStatus
from src.training.supervise.run_folder import RunFolder
from src.training.supervise.server_watch import ServerWatch
from src.training.supervise.supervisor import Agent
from tests.training.runs import on_processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def check_for(watch: HeartbeatWatch, seconds: float, *, step: int) -> Failure | None:
    """Check for so long a rank that lives and does not get any further."""
    deadline = time.monotonic() + seconds
    heartbeat = 0
    while time.monotonic() < deadline:
        heartbeat += 1
        status = {"rank": 0, "step": step, "work": 1, "heartbeat": heartbeat}
        if failure := watch.check({0: status}):
            return failure
        time.sleep(0.01)
    return None


def test_the_steps_before_a_resume_are_no_measure():
    """The first step after a thousand of another process takes as long as a first step."""
    watch = HeartbeatWatch(timeout=0.1)
    assert check_for(watch, 0.2, step=1000) is None
    assert check_for(watch, 0.1, step=1001) is None
    failure = check_for(watch, 10, step=1002)
    assert failure is not None
    assert "any further for" in failure.sentence
    assert failure.sentence.endswith("after step 1002")


def test_the_timeout_is_ten_median_steps():
    watch = HeartbeatWatch(timeout=0.1)
    for step in (1, 2, 3, 6):
        assert check_for(watch, 0.1 if step < 3 else 0.3, step=step) is None
    started = time.monotonic()
    failure = check_for(watch, 10, step=6)
    assert failure is not None
    assert failure.sentence == "no rank has come any further for 1 s after step 6"
    assert time.monotonic() - started > 0.5


def test_a_rank_without_a_heartbeat_is_named_also_before_its_first():
    for status in ({}, {"rank": 3, "step": 7, "work": 1, "heartbeat": 9}):
        watch = HeartbeatWatch(timeout=0.1)
        assert watch.check({1: status}) is None
        time.sleep(0.2)
        failure = watch.check({1: status})
        assert failure is not None
        place = "rank 3 is frozen after step 7" if status else "rank 1 is frozen before its first"
        assert failure.sentence.startswith(place)


def leave_error(folder: RunFolder, rank: int, text: str, *, is_user_error: bool = False) -> None:
    error = {"rank": rank, "step": 3, "time": 5.5, "is_user_error": is_user_error, "error": text}
    folder.write_error(rank, error)


def test_the_rank_that_was_killed_is_named_and_not_those_that_lost_it(folder: RunFolder):
    """All of them may have ended when torch's agent looks, whose times are whole seconds."""
    for rank in (0, 1, 2):
        folder.write_status(rank, {"rank": rank, "step": 3})
    leave_error(folder, 0, "RuntimeError: Connection closed by peer")
    codes = {0: 1, 1: -signal.SIGKILL, 2: -signal.SIGTERM}
    exits = {rank: ProcessFailure(rank, 0, code, "") for rank, code in codes.items()}
    failure = first_failure(exits, folder)
    assert failure.kind == KILLED
    assert failure.sentence.startswith("rank 1 was killed by SIGKILL after step 3 (often: the")
    assert first_failure({0: exits[0]}, folder).sentence == (
        "rank 0 failed after step 3: RuntimeError: Connection closed by peer"
    )
    assert first_failure({0: exits[0], 2: exits[2]}, folder).kind == ERROR
    assert first_failure({2: exits[2]}, folder).kind == ENDED
    leave_error(folder, 2, "no such layer", is_user_error=True)
    assert first_failure(exits, folder).sentence == "no such layer"


def test_a_rank_that_ends_without_an_error_is_not_said_to_have_lacked_memory(folder: RunFolder):
    failure = first_failure({1: ProcessFailure(1, 0, 3, "")}, folder)
    assert failure.sentence.startswith("rank 1 ended before its first step ended with exit code 3")
    assert "memory" not in failure.sentence


def test_a_failure_is_what_train_raises(folder: RunFolder):
    folder.write_failure(asdict(Failure("no such layer", USER_ERROR)))
    assert isinstance(Failure(**(folder.failure() or {})).error(), UserError)
    assert isinstance(Failure("x", KILLED).error(), TrainingError)


def test_a_killed_agent_is_not_taken_for_what_its_ranks_reported(folder: RunFolder):
    assert "was killed by SIGKILL" in failure_without_agent(-9, folder).sentence
    leave_error(folder, 1, "no such layer", is_user_error=True)
    assert failure_without_agent(-9, folder).sentence == "no such layer"


def test_a_busy_rank_is_not_stuck(folder: RunFolder):
    """Saving takes as long as it takes; each heartbeat counts as work meanwhile."""
    status = RankStatus(folder, rank=0, local_rank=0)

    def work() -> int:
        time.sleep(1.2)
        return folder.statuses()[0]["work"]

    with status.busy():
        assert work() > 0
    told = work()
    assert work() == told


REPORT = """
import resource, sys
from dataclasses import asdict
from pathlib import Path
from src.errors import UserError
from src.training.supervise.heartbeat import RankStatus
from src.training.supervise.run_folder import RunFolder
status = RankStatus(RunFolder(Path(sys.argv[1])), rank=1, local_rank=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
status.fail(UserError("no such layer"))
"""


def test_an_error_that_finds_the_disk_full_is_in_the_log(tmp_path: Path):
    command = [sys.executable, "-c", REPORT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.startswith("rank 1: no such layer (not reported: ")
    assert RunFolder(tmp_path).errors() == {}


def test_a_server_that_ends_takes_no_lines(monkeypatch, make_settings, folder: RunFolder):
    """What a run prints is lost then, and the run does not break or wait."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("slot channel closed")

    monkeypatch.setattr(sys, "stdout", Closed())
    on_processes(make_settings(), 1).save(folder.settings)
    agent = Agent(folder, "tests.training.talker", 1)
    deadline = time.monotonic() + 60
    while agent.is_running() and time.monotonic() < deadline:
        time.sleep(0.05)
    agent.end()
    assert (folder.path / "told").read_text() == "all"


LISTEN = """
import socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_without_a_port_only_the_servers_own_is_watched():
    """Whatever else listens on this machine may come and go."""
    with socket.create_server(("127.0.0.1", 0)):
        assert ServerWatch(None, 2**22 + 1).port is None
        command = [sys.executable, "-c", LISTEN]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            watch = ServerWatch(None, server.pid)
            assert watch.port == port
            assert not watch.is_gone(now=True)
            server.kill()
            server.wait()
            assert watch.is_gone(now=True)
    assert ServerWatch(5001, 2**22 + 1).port == 5001
