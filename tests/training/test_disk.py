"""A run whose disk has no room for it is refused before its base model is loaded."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.errors import UserError
from src.training.plan.dry_run import plan_training
from src.training.run import run_training
from tests.conftest import ROWS


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return a function that makes a small real file system of so many kilobytes."""
    disks: list[Path] = []

    def make(kilobytes: int) -> Path:
        disk = tmp_path / f"disk-{len(disks)}"
        disk.mkdir()
        if os.system(f"mount -t tmpfs -o size={kilobytes}k tmpfs {disk} 2>/dev/null") != 0:
            pytest.skip("needs the right to mount a file system")
        disks.append(disk)
        return disk

    yield make
    for disk in disks:
        os.system(f"umount {disk}")


@pytest.fixture
def inputs(base_dir: Path, write_rows) -> dict[str, object]:
    os.environ["BASE_MODEL"] = str(base_dir)
    os.environ["NUM_PROCESSES"] = "1"
    steps = {"max_steps": 4, "run_validation": False, "checkpoint_seconds": 0}
    return {"train_data": write_rows(ROWS), "lora_rank": 64, **steps}


def kilobytes_needed(lines: list[str]) -> int:
    """Return what the plan says for the disk of the checkpoints."""
    (line,) = (line for line in lines if line.startswith("plan: disk: "))
    part = line.split("; ")[-1]
    assert "CHECKPOINT_DIR" in part
    (size,) = re.findall(r"about ([\d.]+) MB of ", part)
    return int(float(size) * 1000)


def test_a_disk_without_room_is_refused_before_the_model_is_loaded(
    make_disk, inputs: dict[str, object], capfd
):
    os.environ["CHECKPOINT_DIR"] = str(make_disk(1000))
    sentence = (
        r"the disk of CHECKPOINT_DIR has 1\.0 MB free, and about [\d.]+ MB are needed "
        r"\(checkpoints [\d.]+ MB, adapter [\d.]+ MB\); expected more room"
    )
    with pytest.raises(UserError, match=sentence):
        plan_training(inputs)
    with pytest.raises(UserError, match=sentence):
        run_training(inputs, record_metric=lambda *_, **__: None)
    out = capfd.readouterr().out
    assert "plan: memory" in out
    assert "adapter:" not in out


def test_what_is_estimated_is_enough_and_not_much_more(make_disk, inputs: dict[str, object], capfd):
    """Two checkpoints, a third while it is written, and the adapter."""
    os.environ["CHECKPOINT_DIR"] = tempfile.mkdtemp(dir=make_disk(100_000))
    needed = kilobytes_needed(plan_training(inputs))
    disk = make_disk(round(1.02 * needed))
    os.environ["CHECKPOINT_DIR"] = str(disk)
    run_training(inputs, record_metric=lambda *_, **__: None)
    assert "warning" not in capfd.readouterr().out
    (run,) = disk.glob("run-*")
    assert sorted(path.name for path in run.iterdir()) == [
        *("finished-step-00000004", "step-00000003", "step-00000004")
    ]
    kept = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    third = sum(path.stat().st_size for path in (run / "step-00000004").iterdir())
    assert 0.9 * needed < (kept + third) / 1000 <= needed


def test_tokens_have_room_before_they_are_written(make_disk, inputs: dict[str, object], write_rows):
    os.environ["TMPDIR"] = str(make_disk(100))
    tempfile.tempdir = None
    try:
        with pytest.raises(UserError, match=r"the run's folder has 0\.1 MB free, .*\(tokens "):
            plan_training({**inputs, "train_data": write_rows(ROWS * 40)})
    finally:
        tempfile.tempdir = None
