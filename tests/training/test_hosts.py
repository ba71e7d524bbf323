"""Several machines train as one; here they are two addresses of this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.errors import UserError
from src.training.run import run_training
from src.training.supervise.hosts import find_hosts, local_devices
from src.training.supervise.join import take_part
from src.training.supervise.supervisor import run_workers
from tests.training.runs import CURVE, losses

pytestmark = pytest.mark.xdist_group("launched")  # not two runs at a time


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    shared = tmp_path / "shared"
    shared.mkdir()
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("# two machines\n127.0.0.1 slots=1\n\n127.0.0.2  slots=1 # the other\n")
    return {"DEEPSPEED_HOSTFILE": str(hostfile), "SHARED_FOLDER": str(shared)}


def test_two_machines_have_the_curve_of_one(
    environment, make_settings, tmp_path: Path, base_dir: Path
):
    settings = make_settings(**CURVE)
    curves = []
    other = subprocess.Popen(
        [sys.executable, "-u", "-m", "src.training.supervise.join"],
        env={**os.environ, **environment, "NODE_RANK": "1", "BASE_MODEL": str(base_dir)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "waiting for trainings of 127.0.0.1\n"
        hosts = find_hosts(environment)
        assert hosts is not None
        assert (hosts.num_processes, hosts.num_local, hosts.node_rank) == (2, 1, 0)
        for run_dir, machines in (
            (Path(environment["SHARED_FOLDER"]) / "training-two", hosts),
            (tmp_path / "training-one", None),
        ):
            run_dir.mkdir()
            output = run_workers(
                settings,
                run_dir,
                num_processes=2,
                on_gpus=False,
                on_metric=lambda record: None,
                hosts=machines,
            )
            curves.append(losses(output))
            ranks = {path.name for path in (run_dir / "ranks").iterdir()}
            assert ranks == {"0.json", "1.json"}
    finally:
        other.terminate()
        rest, _ = other.communicate(timeout=20)
    assert "taking part in training-two" in rest
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_a_run_that_ends_before_it_is_joined_is_left_alone(environment, tmp_path: Path):
    hosts = find_hosts(environment)
    assert hosts is not None
    take_part(tmp_path / "training-gone" / "invitation.json", hosts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"NODE_RANK": "2"}, "NODE_RANK: expected a number from 0 to 1"),
        ({"NODE_RANK": "one"}, "found 'one'"),
        ({"SHARED_FOLDER": ""}, "SHARED_FOLDER: expected a folder"),
        ({"DEEPSPEED_HOSTFILE": "/nowhere"}, "there is no file /nowhere"),
    ],
)
def test_what_is_wrong_is_said(environment, change: dict[str, str], words: str):
    assert find_hosts({}) is None
    with pytest.raises(UserError, match=words):
        find_hosts({**environment, **change})


@pytest.mark.parametrize("line", ["a", "a slots=x", "a slots=0", "a slots=1\na slots=2", "# none"])
def test_a_bad_hostfile_is_refused(environment, line: str):
    Path(environment["DEEPSPEED_HOSTFILE"]).write_text(line)
    with pytest.raises(UserError, match="hostfile"):
        find_hosts(environment)


def test_the_batch_is_for_all_machines(environment, base_dir: Path, write_rows):
    os.environ |= {**environment, "BASE_MODEL": str(base_dir)}
    inputs = {"train_data": write_rows([{"text": "a b"}] * 4), "train_batch_size": 3}
    with pytest.raises(UserError, match="train_batch_size: expected a multiple of 2"):
        run_training(inputs, record_metric=lambda *_, **__: None)


def test_the_machines_own_devices():
    assert local_devices(3) == [0, 1, 2]
    os.environ["CUDA_VISIBLE_DEVICES"] = "2,GPU-5f"
    assert local_devices(2) == [2, "GPU-5f"]
    assert local_devices(1) == [2]
