"""Whatever ends a run, the next one goes on from it, and the numbers are those of a whole run."""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from src.errors import UserError
from src.training.checkpoint.store import newest_checkpoint
from src.training.run import run_training
from src.training.supervise.failure import TrainingError
from src.weights.adapter.manifest import read_manifest
from tests.conftest import ROWS
from tests.training.processes import session_processes
from tests.training.ranks import RanksFailed
from tests.training.runs import CURVE, metrics

OPTIONS = {**CURVE, "lora_dropout": 0.1, "num_validation_samples": 4, "checkpoint_seconds": 0}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, object]:
    """Two ranks, and a checkpoint after every step."""
    folder = str(tmp_path / "checkpoints" / "run")
    return {**OPTIONS, "checkpoint_folder": folder, "num_processes": 2}


@pytest.fixture
def train(train, options):
    return lambda **values: train(**{**options, **values})


@pytest.fixture
def launch(launch, options):
    return lambda **values: launch(**{**options, **values})


def checkpoints(tmp_path: Path) -> list[str]:
    folder = tmp_path / "checkpoints" / "run"
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def final_losses(output: Path) -> list[float]:
    manifest = json.loads((output / "training.json").read_text())
    return [manifest["train_loss"], manifest["eval_loss"]]


FAULTS = (("0:save6:kill", 5), ("1:validation9:exit", 8))
"""In the middle of a save, and in a validation; with the last whole step."""


@pytest.mark.parametrize(
    ("stage", "faults", "is_over"), [("2", FAULTS, True), ("3", FAULTS[:1], False)]
)
def test_a_killed_run_goes_on_to_the_bit(
    train, tmp_path: Path, stage: str, faults, *, is_over: bool
):
    """Also one that had nothing left to do but to hand on its adapter."""
    os.environ["ZERO_STAGE"] = stage
    whole = train()
    shutil.rmtree(tmp_path / "checkpoints")
    newest = None
    for fault, left in faults:
        with pytest.raises(RanksFailed) as error:
            train(resume_from=newest, fault=fault)
        assert (-signal.SIGKILL if "kill" in fault else 3) in error.value.exit_codes
        checkpoint = newest_checkpoint(tmp_path / "checkpoints" / "run")
        assert checkpoint is not None
        assert checkpoint.step == left
        newest = str(checkpoint.folder)
    outputs = [train(resume_from=newest)]
    if is_over:
        last = tmp_path / "checkpoints" / "run" / "step-00000012"
        outputs.append(train(resume_from=str(last)))
    for output in outputs:
        assert metrics(output) == metrics(whole)
        assert final_losses(output) == final_losses(whole)
        assert read_manifest(output).base_model == "tiny-llama"
        expected, found = (load_file(o / "adapter_model.safetensors") for o in (whole, output))
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    kept = ["finished-step-00000012", "step-00000011", "step-00000012"]
    assert checkpoints(tmp_path) == kept


def test_not_a_number_on_one_rank_stops_all_before_it_is_learned(train, tmp_path: Path):
    with pytest.raises(RanksFailed, match="step 4: the loss is not finite") as error:
        train(fault="1:step4:nan")
    assert "the adapter before it is in run/stopped-step-00000003" in str(error.value)
    kept = tmp_path / "checkpoints" / "run" / "stopped-step-00000003"
    assert json.loads((kept / "training.json").read_text())["stopped_early"] is True
    tensors = load_file(kept / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_a_frozen_rank_is_named(launch, tmp_path: Path):
    os.environ |= {"FAULT": "1:step4:stop", "FROZEN_SECONDS": "10"}
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"rank 1 is frozen after step 3: no sign of it for"):
        launch()
    assert time.monotonic() - started < 60
    assert session_processes(str(tmp_path)) == []


def test_a_server_that_ends_leaves_the_adapter(launch, tmp_path: Path):
    """Cog's server tells a training nothing: its port is closed, and ten seconds are left."""
    server = socket.create_server(("127.0.0.1", 0))
    os.environ["PORT"] = str(server.getsockname()[1])
    ended: list[float] = []

    def end_at_step_3(record: dict[str, object]) -> None:
        if record["step"] == 3 and not ended:
            ended.append(time.monotonic())
            time.sleep(1.2)  # one look at the open port
            server.close()

    with pytest.raises(TrainingError, match=r"stopped early after step \d+: the adapter is in"):
        launch(num_train_epochs=2000, on_metric=end_at_step_3)
    assert time.monotonic() - ended[0] < 10
    check_stopped(tmp_path)


@pytest.mark.parametrize("is_port_closed", [True, False])
def test_a_server_that_ends_takes_no_metrics(launch, tmp_path: Path, is_port_closed: bool):
    server = socket.create_server(("127.0.0.1", 0))
    os.environ["PORT"] = str(server.getsockname()[1])

    def end_at_step_3(record: dict[str, object]) -> None:
        if record["step"] == 3:
            if is_port_closed:
                server.close()
            raise BrokenPipeError

    with server, pytest.raises(BrokenPipeError):
        launch(num_train_epochs=2000, on_metric=end_at_step_3)
    check_stopped(tmp_path)


def test_a_server_that_ends_with_the_run_leaves_the_adapter(launch, tmp_path: Path):
    """A finished run's archive is lost with the server that was to hand it on."""
    server = socket.create_server(("127.0.0.1", 0))
    os.environ["PORT"] = str(server.getsockname()[1])

    def end_at_last_step(record: dict[str, object]) -> None:
        if record["step"] == 12:
            server.close()

    output = launch(on_metric=end_at_last_step)
    (name,) = (name for name in checkpoints(tmp_path) if name.startswith("finished"))
    kept = tmp_path / "checkpoints" / "run" / name
    assert name == "finished-step-00000012"
    assert json.loads((kept / "training.json").read_text())["stopped_early"] is False
    for path in output.iterdir():
        assert (kept / path.name).read_bytes() == path.read_bytes()


def check_stopped(tmp_path: Path) -> None:
    """Assert that there is one adapter of an unfinished run, and that it is a good one."""
    (name,) = (name for name in checkpoints(tmp_path) if name.startswith("stopped"))
    folder = tmp_path / "checkpoints" / "run" / name
    manifest = json.loads((folder / "training.json").read_text())
    assert manifest["stopped_early"] is True
    assert 3 <= manifest["step"] == int(name.removeprefix("stopped-step-"))
    assert load_file(folder / "adapter_model.safetensors")
    assert session_processes(str(tmp_path)) == []


class Cancel(BaseException):
    """What Cog raises in the thread of a canceled training."""


@pytest.mark.parametrize("is_kept", [True, False])
def test_cancel_keeps_what_is_there_if_asked(launch, tmp_path: Path, is_kept: bool):
    canceled: list[float] = []

    def cancel_at_step_3(record: dict[str, object]) -> None:
        if record["step"] == 3:
            canceled.append(time.monotonic())
            raise Cancel

    with pytest.raises(Cancel):
        launch(num_train_epochs=2000, on_metric=cancel_at_step_3, save_on_cancel=is_kept)
    assert time.monotonic() - canceled[0] < 5
    assert any("stopped" in name for name in checkpoints(tmp_path)) == is_kept
    if is_kept:
        check_stopped(tmp_path)


@pytest.mark.parametrize(
    ("inputs", "directory", "words"),
    [
        ({"resume_from": "auto"}, "", "resume_from: the server has no CHECKPOINT_DIR"),
        ({"save_on_cancel": True}, "", "save_on_cancel: the server has no CHECKPOINT_DIR"),
        ({"resume_from": "../x"}, "here", "expected auto or a folder below CHECKPOINT_DIR"),
        ({"resume_from": "run-1/step-00000001"}, "here", "expected a folder with a complete"),
    ],
)
def test_what_cannot_be_resumed_is_said(
    base_dir: Path, write_rows, tmp_path: Path, inputs, directory: str, words: str
):
    os.environ["BASE_MODEL"] = str(base_dir)
    os.environ["CHECKPOINT_DIR"] = directory and str(tmp_path / directory)
    with pytest.raises(UserError, match=words):
        run_training(
            {"train_data": write_rows(ROWS), **inputs}, record_metric=lambda *_, **__: None
        )


def test_auto_finds_this_runs_checkpoint(base_dir: Path, write_rows, tmp_path: Path, capfd):
    os.environ |= {"BASE_MODEL": str(base_dir), "CHECKPOINT_DIR": str(tmp_path / "kept")}
    inputs = {"train_data": write_rows(ROWS), "max_steps": 4, "resume_from": "auto"}
    inputs |= {"checkpoint_seconds": 0, "run_validation": False}

    def train() -> str:
        run_training(inputs, record_metric=lambda *_, **__: None)
        return capfd.readouterr().out

    assert "there is no checkpoint of this run; it starts anew" in train()
    assert "resumed after step 4 of 4" in train()
