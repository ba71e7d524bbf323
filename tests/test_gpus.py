"""A GPU that torch cannot use is named with what would help; nothing runs on the CPU in silence."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from src import gpus
from src.environment import TrainEnvironment
from src.errors import UserError
from src.gpus import count_gpus, find_device, unusable_gpu
from src.serving.engine.engine import Engine
from src.training.plan.dry_run import plan_training
from src.training.supervise.run_folder import RunFolder
from tests.conftest import ROWS
from tests.training.ranks import RanksFailed, run_ranks

LISTED = "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa1111-2222)"
UNUSABLE = "this machine has a GPU that torch .* cannot use"
OPEN_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build"
DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024"


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> Callable[[str], None]:
    """Return a function that puts an nvidia-smi on the path, which says one thing."""

    def install(says: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\n")
        program.chmod(0o755)
        os.environ["PATH"] = f"{tmp_path}:{os.environ['PATH']}"

    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    return install


without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")


@without_gpu
def test_serving_does_not_fall_back_to_the_cpu(nvidia_smi, base_dir: Path):
    nvidia_smi(LISTED)
    with pytest.raises(UserError, match=UNUSABLE):
        Engine(base_dir)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    assert find_device() == torch.device("cpu")


@without_gpu
def test_training_does_not_fall_back_to_the_cpu(nvidia_smi, base_dir, make_settings, tmp_path):
    nvidia_smi(LISTED)
    settings = make_settings(environment=TrainEnvironment(on_gpus=True))
    with pytest.raises(RanksFailed):
        run_ranks(settings, tmp_path)
    (error,) = RunFolder(tmp_path).errors().values()
    assert re.search(UNUSABLE, str(error))


@without_gpu
def test_a_plan_is_not_made_for_a_gpu_that_cannot_be_used(nvidia_smi, base_dir, write_rows):
    nvidia_smi(LISTED)
    os.environ["BASE_MODEL"] = str(base_dir)
    with pytest.raises(UserError, match=UNUSABLE):
        plan_training({"train_data": write_rows(ROWS)})


def test_a_build_without_cuda_is_named_with_the_line_that_helps():
    assert unusable_gpu("2.13.0+cpu", None, "580.95.05").startswith(
        "this machine has a GPU that torch 2.13.0+cpu cannot use: it is a build without CUDA; "
        "expected the line torch==2.13.0 in requirements.txt"
    )


def test_an_old_driver_is_named_with_the_build_that_it_runs():
    assert unusable_gpu("2.13.0+cu130", "13.0", "550.54.14") == (
        "this machine has a GPU that torch 2.13.0+cu130 cannot use: its NVIDIA driver is "
        "550.54.14, and CUDA 13.0 needs 580 or newer; expected such a driver or, which runs with "
        "525 and newer, torch's build for CUDA 12.6: in requirements.txt the lines "
        "'--extra-index-url https://download.pytorch.org/whl/cu126' and 'torch==2.13.0+cu126', in "
        "cog.yaml 'cuda: \"12.6\"'; CUDA_VISIBLE_DEVICES= (empty) runs on the CPU all the same"
    )


@pytest.mark.parametrize("driver", ["580.95.05", "of an unknown version"])
def test_a_driver_that_is_new_enough_is_not_blamed(driver: str):
    sentence = unusable_gpu("2.13.0+cu130", "13.0", driver)
    assert f"cannot use: NVIDIA driver {driver}, CUDA 13.0; expected nvidia-smi to" in sentence
    assert "cu126" not in sentence


def test_a_gpu_that_this_build_has_no_code_for_is_named(monkeypatch):
    for name, value in {
        "is_available": True,
        "get_device_capability": (7, 0),
        "get_arch_list": ["sm_75", "sm_80", "sm_90a", "compute_120"],
        "get_device_name": "Tesla V100",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *index, value=value: value)
    with pytest.raises(UserError, match=r"no code for this Tesla V100 .* 7\.0, only from 7\.5 on"):
        find_device(1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert find_device(1) == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("file", "driver"), [(OPEN_DRIVER, r"580\.95\.05"), (DRIVER, r"535\.183\.01")]
)
@pytest.mark.parametrize(
    "says", [None, "Failed to initialize NVML: Driver/library version mismatch"]
)
def test_a_gpu_that_a_container_hides_is_named(
    nvidia_smi, monkeypatch, tmp_path: Path, file: str, driver: str, says: str | None
):
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "version").write_text(file)
    monkeypatch.setattr(gpus, "DRIVER_FILES", tmp_path)
    if says:
        nvidia_smi(says)
    else:
        os.environ["PATH"] = str(tmp_path)
    words = says or "there is none"
    with pytest.raises(
        UserError, match=rf"driver {driver}\) .* list here: {words}; expected a con"
    ):
        count_gpus()
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "")
            assert count_gpus() == 0


def test_without_a_driver_the_cpu_is_used(tmp_path: Path):
    os.environ["PATH"] = str(tmp_path)
    assert count_gpus() == 0
