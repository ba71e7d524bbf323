"""Several machines train as one; here each is a process that takes the same command."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from src.settings import TrainSettings
from src.training.supervise.run_folder import RunFolder
from tests.conftest import ROWS
from tests.training.faults import MODULE
from tests.training.processes import session_processes
from tests.training.runs import CURVE, losses, on_processes

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
import sys
from pathlib import Path
from src.settings import TrainSettings
from src.training.supervise.supervisor import run_workers
folder = Path(sys.argv[1])
settings = TrainSettings.load(folder / "asked.json")
try:
    print("output:", run_workers(settings, folder, on_metric=print, worker=sys.argv[2]))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class Machine:
    """One machine of a run: a supervisor with its ranks."""

    def __init__(self, folder: Path, settings: TrainSettings, *, has_data: bool, fault: str = ""):
        folder.mkdir()
        self.folder = RunFolder(folder)
        if not has_data:
            settings = replace(settings, train_data="", train_data_name="")
        settings.save(folder / "asked.json")
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(folder), MODULE],
            cwd=ROOT,
            env={**os.environ, "FAULT": fault},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_step(self, step: int) -> None:
        """Return when a rank of this machine has taken that step."""
        while max((s["step"] for s in self.folder.statuses().values()), default=0) < step:
            assert self.process.poll() is None, self.end()
            time.sleep(0.1)

    def end(self) -> tuple[int, str, str]:
        """Return the exit code, the output and the errors."""
        output, errors = self.process.communicate(timeout=240)
        return self.process.returncode, output, errors


@pytest.fixture
def settings(make_settings) -> TrainSettings:
    """Settings of two machines with one process each."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        rendezvous = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = on_processes(make_settings(**CURVE), 1)
    environment = replace(settings.environment, num_nodes=2, rendezvous=rendezvous)
    return replace(settings, environment=environment)


@pytest.fixture
def machines(tmp_path: Path):
    """Return a function that starts two machines, of which torch counts that with the data last.

    It orders them by address and process.
    """
    started: list[Machine] = []

    def start(
        settings: TrainSettings,
        *,
        data: tuple[bool, bool] = (False, True),
        fault: str = "",
        **others: object,
    ):
        """`others` is what the environment says on the machine without the data."""
        elsewhere = replace(settings, environment=replace(settings.environment, **others))
        for has_data in data:
            folder = tmp_path / f"machine-{len(started)}"
            asked = settings if has_data else elsewhere
            started.append(Machine(folder, asked, has_data=has_data, fault=fault))
            while not session_processes(str(folder / "settings.json")):  # its agent
                time.sleep(0.05)
        return started[-2:]

    yield start
    for machine in started:
        machine.process.kill()
        machine.process.communicate()


def test_two_machines_have_the_curve_of_one(machines, settings, launch):
    other, owner = machines(settings)
    code, output, errors = owner.end()
    assert code == 0, errors
    assert "step 12/12" in output
    code, output, errors = other.end()
    assert (code, output.splitlines()[-1]) == (0, "output: None"), errors
    assert not other.folder.output.exists()
    assert [status["rank"] for status in other.folder.statuses().values()] == [0]
    assert losses(owner.folder.output) == pytest.approx(losses(launch(**CURVE)), abs=1e-4)


def test_the_machine_with_the_data_says_what_all_compute_in(machines, settings):
    said = {"dtype": "bfloat16", "in_float8": True, "deterministic": True}
    environment = replace(settings.environment, **said)
    asked = replace(settings, environment=environment, max_steps=1)
    both = machines(asked, dtype="float32", in_float8=False, deterministic=False)
    for machine in both:
        code, _, errors = machine.end()
        assert code == 0, errors
        found = TrainSettings.load(machine.folder.settings).environment
        assert {name: getattr(found, name) for name in said} == said


def test_a_rank_killed_on_the_other_machine_is_named_on_both(machines, settings, tmp_path: Path):
    for machine in machines(replace(settings, num_train_epochs=5000), fault="0:step4:kill"):
        code, _, errors = machine.end()
        assert code == 1
        assert "TrainingError: rank 0 was killed by SIGKILL after step 3" in errors
    assert session_processes(str(tmp_path)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("first", [0, 1])
def test_a_machine_that_ends_ends_the_other(machines, settings, tmp_path, number, first: int):
    """As when its training is canceled, or its server is killed."""
    both = machines(replace(settings, num_train_epochs=5000))
    both[0].wait_for_step(3)
    both[first].process.send_signal(number)
    started = time.monotonic()
    code, _, errors = both[1 - first].end()
    assert code == 1
    assert time.monotonic() - started < 30
    if number == signal.SIGINT:
        assert "TrainingError: the training was ended on 127.0.0.1" in errors
    both[first].end()
    assert session_processes(str(tmp_path)) == []


@pytest.mark.parametrize("data", [(False, False), (True, True)])
def test_exactly_one_machine_has_the_data(machines, settings, data: tuple[bool, bool]):
    for machine in machines(settings, data=data):
        code, _, errors = machine.end()
        assert code == 1
        assert "UserError: train_data: expected the file on exactly one of the 2 mach" in errors


def test_the_batch_is_for_all_machines(machines, settings):
    for machine in machines(replace(settings, train_batch_size=3)):
        code, _, errors = machine.end()
        assert code == 1
        assert "UserError: train_batch_size: expected a multiple of 2" in errors


def test_a_run_on_two_machines_goes_on_from_its_checkpoint(machines, settings, tmp_path: Path):
    """It lies on the machine with the data, which sends it to the other one."""
    kept = tmp_path / "kept"
    settings = replace(settings, checkpoint_folder=str(kept), checkpoint_seconds=0)
    for machine in machines(settings, fault="1:step4:kill"):
        machine.end()
    newest = kept / "step-00000003"
    other, owner = machines(replace(settings, resume_from=str(newest)))
    code, output, errors = owner.end()
    assert code == 0, errors
    assert "resumed after step 3 of 12" in output
    assert other.end()[0] == 0


def test_the_same_command_is_given_on_each_machine(base_dir, write_rows, settings, tmp_path: Path):
    """Only the machine with the file gets the weights; the log of both names it."""
    environment = {"NUM_NODES": "2", "NUM_PROCESSES": "1", "BASE_MODEL": str(base_dir)}
    environment["RENDEZVOUS"] = settings.environment.rendezvous
    commands = []
    for name in (write_rows(ROWS), tmp_path / "elsewhere.jsonl"):
        weights = tmp_path / f"{name.stem}.tar"
        command = [sys.executable, "-m", "src.cli.client", "train", str(name), "-o", str(weights)]
        process = subprocess.Popen(
            [*command, "-i", "max_steps=2"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        commands.append((process, weights))
    for process, weights in commands:
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, output + errors
        assert "the data is on 127.0.0.1, which keeps the weights" in output
        assert weights.exists() == (weights.stem == "data")
