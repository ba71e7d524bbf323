"""Devices are counted as CUDA would show them, and a wish for more is answered."""

import os
from pathlib import Path

import pytest
import torch

from src.environment import TrainEnvironment
from src.host_memory import process_memory
from src.training.plan.resources import (
    Resources,
    count_devices,
    expected_resources,
    keep_to_limit,
)
from tests.test_host_memory import new_memory

LISTED = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa1111-2222)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-bbbb1111-2222)
  MIG 3g.40gb     Device  0: (UUID: MIG-cccc1111-2222)
GPU 2: NVIDIA A100-SXM4-80GB (UUID: GPU-dddd1111-2222)
"""


@pytest.fixture
def three_gpus(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    program.chmod(0o755)
    os.environ["PATH"] = f"{tmp_path}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("visible", "num_gpus"),
    [
        (None, 3),
        ("0", 1),
        ("2, 0", 2),
        ("0,1,2", 3),
        ("GPU-bbbb", 1),
        ("MIG-cccc1111-2222", 1),
        ("1,7,2", 1),  # CUDA shows none from the first unknown name on
        ("-1", 0),
        ("", 0),
        ("GPU-eeee", 0),
    ],
)
def test_the_visible_gpus_are_counted(three_gpus, visible: str | None, num_gpus: int):
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    found, on_gpus = count_devices()
    assert on_gpus == (num_gpus > 0)
    assert found == num_gpus or not on_gpus


def test_more_processes_than_gpus_are_not_started_in_silence(three_gpus, capsys):
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"
    assert count_devices(1) == (1, True)
    assert capsys.readouterr().out == ""
    assert count_devices(8) == (2, True)
    assert capsys.readouterr().out == "NUM_PROCESSES is 8, and there are 2 GPUs: all are used\n"


def test_without_a_driver_a_named_gpu_is_none(tmp_path: Path):
    os.environ |= {"CUDA_VISIBLE_DEVICES": "0", "PATH": str(tmp_path)}
    assert count_devices(3) == (3, False)


def test_processes_are_no_more_than_the_cores_that_may_be_used(tmp_path: Path):
    os.environ["PATH"] = str(tmp_path)
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert count_devices() == (1, False)
    finally:
        os.sched_setaffinity(0, cores)


def test_cpu_processes_share_the_memory_and_keep_to_a_limit():
    one, four = (expected_resources(TrainEnvironment(num_processes=n)).available for n in (1, 4))
    assert 3 < one / four < 5
    limited = TrainEnvironment(num_processes=1, device_memory=1e6)
    assert expected_resources(limited).available == 1e6


def test_without_a_gpu_a_rank_is_refused_what_it_was_not_given():
    """A refusal, where the kernel would end the process: a pass that is refused is split."""
    child = os.fork()
    if child == 0:
        try:
            available = process_memory() + 400e6  # less than the parent's: files are not counted
            given = Resources(
                device=torch.device("cpu"),
                available=available,
                libraries=0,
                alone=0,
                dtype=torch.float32,
            )
            keep_to_limit(torch.device("cpu"), given, None)
            kept = new_memory(100 * 2**20)
            new_memory(400 * 2**20)
        except OSError:
            os._exit(0 if len(kept) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
