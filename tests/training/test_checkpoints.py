"""Whatever ends a run, the next one goes on from it, and the numbers are those of a whole run."""

import errno
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as save_tensors

from src.errors import UserError
from src.training.checkpoint.checkpointer import Checkpointer, seconds_between
from src.training.checkpoint.resume import resume
from src.training.checkpoint.store import (
    MANIFEST,
    METRICS,
    STATE,
    CheckpointStore,
    check_same_run,
    describe_run,
    disk_full,
    read_checkpoint,
    run_folder,
)
from src.training.results.metrics import Progress
from src.training.run import run_training
from src.training.supervise.failure import TrainingError
from src.training.supervise.session import Session
from src.training.supervise.stop import ServerWatch
from src.weights.adapter.manifest import read_manifest
from tests.conftest import ROWS
from tests.training.processes import session_processes
from tests.training.ranks import RanksFailed
from tests.training.runs import CURVE, metrics

pytestmark = pytest.mark.xdist_group("launched")  # not two runs at a time

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
        checkpoint = CheckpointStore(tmp_path / "checkpoints" / "run", {}).newest()
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


def test_a_server_without_a_port_of_its_own_is_seen():
    """Cog's server listens at port 5000 unless PORT says otherwise."""
    assert ServerWatch({}).port == 5000
    assert ServerWatch({"PORT": "5001"}).port == 5001


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


def test_a_server_that_ends_takes_no_lines(monkeypatch, tmp_path: Path):
    """What a run says is lost then, and the run does not break or wait."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("slot channel closed")

    told = tmp_path / "told"
    code = f"for n in range(50_000): print('step', n)\nopen({str(told)!r}, 'w').write('all')"
    monkeypatch.setattr(sys, "stdout", Closed())
    session = Session([sys.executable, "-c", code], os.environ)
    deadline = time.monotonic() + 60
    while session.is_running() and time.monotonic() < deadline:
        time.sleep(0.05)
    session.end()
    assert told.read_text() == "all"


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


def test_a_stop_while_a_checkpoint_is_put_back_keeps_what_is_there(make_settings, tmp_path: Path):
    """The adapter of the step before is not replaced by one that is not put back yet."""
    settings = replace(make_settings(), checkpoint_folder=str(tmp_path / "kept"))
    store = CheckpointStore(tmp_path / "kept", {})
    state = {"tokens": 0, "loss_sum": 0.0, "weight_sum": 0.0}
    state |= {"train_loss": None, "validation_loss": None}
    folder = save(store, 3, save_tensors({}), state)
    stopped = tmp_path / "kept" / "stopped-step-00000003"

    class StubTrainer:
        """Is asked to stop at every moment of the restore."""

        num_steps_done, changing = 0, Lock()
        engine = SimpleNamespace(optimizer=SimpleNamespace(optimizer=SimpleNamespace(state={})))

        def prime(self, *_: object) -> None:
            checkpointer.keep_adapter()

    class Parameters:
        def __iter__(self) -> Iterator[object]:
            checkpointer.keep_adapter()
            return iter(())

    def write_adapter(folder: Path, tensors: object, step: int) -> None:
        (folder / "adapter").write_text(f"after step {step}")

    run: Any = SimpleNamespace(
        settings=settings, rank=0, train_data=None, note_step=lambda step: None,
        step_plan=SimpleNamespace(longest_micro_batch=lambda rank: ()),
    )  # fmt: skip
    trainer: Any = StubTrainer()
    checkpointer = Checkpointer(
        tmp_path, store, trainer, rank=0, seconds=0, busy=nullcontext, is_sharded=True,
        gather_state=dict, gather_adapter=dict, write_adapter=write_adapter,
    )  # fmt: skip
    adapted: Any = SimpleNamespace(adapter=Parameters())
    progress = Progress(None, num_steps=4)
    assert resume(folder, run, tmp_path, trainer, adapted, progress) == 3
    assert not stopped.exists()
    checkpointer.keep_adapter()
    assert (stopped / "adapter").read_text() == "after step 3"


# How much is lost.


@pytest.mark.parametrize("asked", [0, 1, 20, 60, 300, 10_000])
@pytest.mark.parametrize("cost", [0.0, 0.01, 0.3, 0.6, 1.2, 2.9, 3.1, 100.0])
def test_cheap_checkpoints_come_often(asked: float, cost: float):
    """A minute's work is all that is lost, unless saving it would take too much of the time."""
    pause = seconds_between(asked, cost=cost)
    assert pause <= asked
    assert pause + cost <= 60 or cost > 0.05 * 60
    share = 0.02 if cost <= 0.6 else 0.06
    assert cost <= share * pause or pause == asked


# What is on disk.


def save(
    store: CheckpointStore,
    step: int,
    content: bytes = b"state",
    progress: Mapping[str, object] = MappingProxyType({"tokens": 1}),
) -> Path:
    def write_files(folder: Path) -> None:
        (folder / STATE).write_bytes(content)
        (folder / METRICS).write_text("{}\n")

    return store.save(step, dict(progress), write_files)


def test_two_are_kept_and_a_torn_one_is_passed_over(tmp_path: Path, capsys):
    store = CheckpointStore(tmp_path / "run", {"seed": 1})
    folders = [save(store, step) for step in (1, 2, 3)]
    assert [folder.exists() for folder in folders] == [False, True, True]
    newest = store.newest()
    assert newest is not None
    assert (newest.step, newest.run, newest.progress) == (3, {"seed": 1}, {"tokens": 1})
    torn = [
        lambda: (folders[2] / STATE).write_bytes(b"stale"),
        lambda: (folders[2] / STATE).write_bytes(b"stat"),
        lambda: (folders[2] / METRICS).unlink(),
        lambda: (folders[2] / MANIFEST).write_text("{"),
        lambda: (folders[2] / MANIFEST).unlink(),
    ]
    for tear in torn:
        tear()
        found = store.newest()
        assert found is not None
        assert found.step == 2
        assert "checkpoint step-00000003" in capsys.readouterr().out
        shutil.rmtree(folders[2])
        save(store, 3)


def test_what_was_just_written_stays(tmp_path: Path):
    """A run that begins anew finds those of later steps, whole or torn."""
    store = CheckpointStore(tmp_path / "run", {})
    old = [save(store, step) for step in (8, 9)]
    (old[1] / STATE).unlink()
    first = save(store, 1)
    assert [folder.exists() for folder in (*old, first)] == [False, True, True]
    newest = store.newest()
    assert newest is not None
    assert newest.step == 1
    second = save(store, 2)
    assert [folder.exists() for folder in (first, second)] == [False, True]


def test_a_manifest_names_no_file_elsewhere(tmp_path: Path):
    folder = save(CheckpointStore(tmp_path / "run", {}), 1)
    outside = tmp_path / "secret"
    outside.write_text("x")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../secret"] = {"size": 1, "sha256": "0"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="secret is missing"):
        read_checkpoint(folder)


def test_a_disk_that_fills_at_any_place_leaves_the_last_checkpoint(tmp_path: Path):
    """A small real file system is filled so far that each next byte may be the one too many."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=512k tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        store = CheckpointStore(disk / "run", {})
        save(store, 1)
        numbers = random.Random(0)
        num_full = 0
        for step in range(2, 202):
            content = numbers.randbytes(numbers.randrange(1000, 700_000))
            before = store.newest()
            assert before is not None
            error = None
            try:
                save(store, step, content)
            except OSError as found:
                error = found
            if error is None:
                shutil.rmtree(disk / "run" / f"step-{step:08d}")
                save(store, step, b"small")
                continue
            num_full += 1
            assert error.errno == errno.ENOSPC
            sentence = disk_full(error, disk, len(content))
            assert sentence is not None
            assert sentence.startswith("the disk is full: about 0.")
            after = store.newest()
            assert after is not None
            assert after.step == before.step
            assert not list((disk / "run").glob(".*"))
        assert 20 < num_full < 180
    finally:
        os.system(f"umount {disk}")


# Which run it is.


def test_a_run_is_its_settings_and_files(make_settings, tmp_path: Path):
    settings = make_settings()
    run = describe_run(settings)
    checkpoint = read_checkpoint(save(CheckpointStore(tmp_path / "run", run), 1))
    check_same_run(checkpoint, describe_run(replace(settings, checkpoint_seconds=5)))
    with pytest.raises(UserError, match=r"learning_rate was 0\.0001, and is 0\.1 now"):
        check_same_run(checkpoint, describe_run(replace(settings, learning_rate=0.1)))
    other = make_settings(ROWS[:3])
    with pytest.raises(UserError, match="train_data is another file"):
        check_same_run(checkpoint, describe_run(other))
    assert run_folder(tmp_path, run) != run_folder(tmp_path, describe_run(other))


def change_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 1.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_tokenizer(folder: Path) -> None:
    record = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(record | {"added": 1}))


def change_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize("change", [change_weights, change_tokenizer, change_template])
def test_another_base_model_makes_another_run(
    make_settings, base_dir: Path, tmp_path: Path, change: Callable[[Path], None]
):
    """One of the same shape, under the same name: config.json does not tell them apart."""
    folder = tmp_path / "base"
    shutil.copytree(base_dir, folder)
    settings = make_settings(base_model_dir=str(folder))
    run = describe_run(settings)
    assert run == describe_run(make_settings())
    checkpoint = read_checkpoint(save(CheckpointStore(tmp_path / "run", run), 1))
    change(folder)
    with pytest.raises(UserError, match="base model is another"):
        check_same_run(checkpoint, describe_run(settings))
    (folder / "model.safetensors").unlink()
    assert describe_run(settings)  # a plan is made without the weights


@pytest.mark.parametrize(
    ("inputs", "directory", "words"),
    [
        ({"resume_from": "auto"}, "", "resume_from: the server has no CHECKPOINT_DIR"),
        ({"save_on_cancel": True}, "", "save_on_cancel: the server has no CHECKPOINT_DIR"),
        ({"resume_from": "../x"}, "here", "expected auto or a folder below CHECKPOINT_DIR"),
        ({"resume_from": "run-1/step-00000001"}, "here", "expected a folder with a whole"),
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
