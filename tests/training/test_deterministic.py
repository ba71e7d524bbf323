"""Where the operator asks for it, the same run gives the same adapter byte for byte."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from src.deterministic import compute_in_one_order, is_nondeterministic
from src.environment import TrainEnvironment, read_train_environment
from src.model.base_model import load_base_model
from src.model.isolation import find_neighbour_effect
from src.training.worker import _explain
from tests.training.ranks import run_ranks

ADAPTER = "adapter_model.safetensors"


def test_two_runs_give_the_same_bytes(new_run_dir, make_settings):
    settings = make_settings(environment=TrainEnvironment(deterministic=True), lora_dropout=0.1)
    folders = [new_run_dir(), new_run_dir()]
    one, other = (run_ranks(settings, folder, num_processes=2) for folder in folders)
    assert (one / ADAPTER).read_bytes() == (other / ADAPTER).read_bytes()
    assert json.loads((one / "training.json").read_text())["settings"]["deterministic"] is True
    assert ", deterministic, ZeRO-2" in (folders[0] / "log").read_text()
    another = run_ranks(replace(settings, seed=1), new_run_dir(), num_processes=2)
    assert (one / ADAPTER).read_bytes() != (another / ADAPTER).read_bytes()


def forbid_barriers() -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a rank alone waits for others")

    dist.barrier = refuse  # type: ignore[assignment]


def test_it_is_off_by_default_and_a_rank_alone_waits_for_no_others(new_run_dir, make_settings):
    """Its process group knows no device, of which torch would warn at a barrier."""
    output = run_ranks(make_settings(), new_run_dir(), prepare=forbid_barriers)
    assert json.loads((output / "training.json").read_text())["settings"]["deterministic"] is False


def test_the_switch_is_read():
    assert read_train_environment({"DETERMINISTIC": "1"}).deterministic
    assert not read_train_environment({}).deterministic


def test_sums_are_added_up_in_one_order_or_refused():
    os.environ.pop("NCCL_ALGO", None)
    try:
        compute_in_one_order()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert os.environ["NCCL_ALGO"] == "^NVLS"
        with pytest.raises(RuntimeError) as refused:
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    finally:
        torch.use_deterministic_algorithms(False)
    assert is_nondeterministic(refused.value)
    assert str(_explain(refused.value)).startswith(
        "DETERMINISTIC=1: put_ has no deterministic form on this device"
    )
    assert not is_nondeterministic(ValueError("deterministic implementation"))


def test_a_step_without_such_a_form_is_not_taken_for_a_model_that_cannot_run(base_dir: Path):
    model = load_base_model(base_dir, dtype=torch.float32, device=torch.device("cpu"))
    indices, values = torch.tensor([0, 0]), torch.ones(2)
    model.lm_head.register_forward_hook(lambda *_: torch.zeros(3).put_(indices, values))
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as refused:
            find_neighbour_effect(model)
    finally:
        torch.use_deterministic_algorithms(False)
    assert is_nondeterministic(refused.value)
