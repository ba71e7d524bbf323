"""Checkpoints on disk: complete or passed over, of one run, and each process keeps its own."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from safetensors.torch import load_file, save_file

from src.environment import read_train_environment
from src.errors import UserError
from src.files.disk_space import write_error_reason
from src.training.checkpoint.run_identity import check_same_run, describe_run, run_folder
from src.training.checkpoint.store import (
    MANIFEST,
    METRICS,
    STATE,
    CheckpointStore,
    newest_checkpoint,
    read_checkpoint,
)
from tests.conftest import ROWS


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


def test_two_are_kept_and_a_corrupt_one_is_passed_over(tmp_path: Path, capsys):
    store = CheckpointStore(tmp_path / "run", {"seed": 1})
    folders = [save(store, step) for step in (1, 2, 3)]
    assert [folder.exists() for folder in folders] == [False, True, True]
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert (newest.step, newest.run, newest.progress) == (3, {"seed": 1}, {"tokens": 1})
    corruptions = [
        lambda: (folders[2] / STATE).write_bytes(b"stale"),
        lambda: (folders[2] / STATE).write_bytes(b"stat"),
        lambda: (folders[2] / METRICS).unlink(),
        lambda: (folders[2] / MANIFEST).write_text("{"),
        lambda: (folders[2] / MANIFEST).unlink(),
    ]
    for corrupt in corruptions:
        corrupt()
        found = newest_checkpoint(tmp_path / "run")
        assert found is not None
        assert found.step == 2
        assert "checkpoint step-00000003" in capsys.readouterr().out
        shutil.rmtree(folders[2])
        save(store, 3)


def test_what_was_just_written_stays(tmp_path: Path):
    """A run that begins anew finds those of later steps, complete or corrupt."""
    store = CheckpointStore(tmp_path / "run", {})
    old = [save(store, step) for step in (8, 9)]
    (old[1] / STATE).unlink()
    first = save(store, 1)
    assert [folder.exists() for folder in (*old, first)] == [False, True, True]
    newest = newest_checkpoint(tmp_path / "run")
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
            before = newest_checkpoint(disk / "run")
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
            sentence = write_error_reason(error, disk, len(content))
            assert sentence.startswith("the disk is full: about 0.")
            after = newest_checkpoint(disk / "run")
            assert after is not None
            assert after.step == before.step
            assert not list((disk / "run").glob(".*"))
        assert 20 < num_full < 180
    finally:
        os.system(f"umount {disk}")


SECOND_SERVER = """
import sys
from pathlib import Path
from src.training.checkpoint.store import CheckpointStore
from tests.training.test_store import save

store = CheckpointStore(Path(sys.argv[1]), {})
for step in (1, 2, 3):
    save(store, step)
print(store.folder.name)
"""


def test_two_processes_with_the_same_run_keep_their_own_checkpoints(tmp_path: Path):
    """The second one to come takes another folder, as long as the first one lives."""
    store = CheckpointStore(tmp_path / "run", {})
    folders = [save(store, step) for step in (8, 9)]

    def train_elsewhere() -> str:
        command = [sys.executable, "-c", SECOND_SERVER, str(tmp_path / "run")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert train_elsewhere() == "run-2"
    assert all(read_checkpoint(folder) for folder in folders)
    assert newest_checkpoint(tmp_path / "run").step == 9
    save(store, 10)
    names = sorted(path.name for path in (tmp_path / "run-2").iterdir())
    assert names == ["step-00000002", "step-00000003"]
    # Once it has ended, its folder is taken again, and a later run finds the newest of all.
    del store
    shutil.rmtree(tmp_path / "run")
    assert newest_checkpoint(tmp_path / "run").step == 3
    assert train_elsewhere() == "run"


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


PRECISIONS = (("DTYPE", "bfloat16"), ("BASE_WEIGHTS", "fp8"), ("DETERMINISTIC", "1"))


@pytest.mark.parametrize(("name", "value"), PRECISIONS)
def test_another_precision_makes_another_run(make_settings, tmp_path: Path, name: str, value: str):
    """Where none is set, a run is what it was before there were any to set."""
    plain, other = (
        describe_run(make_settings(environment=read_train_environment(environ)))
        for environ in ({}, {name: value})
    )
    assert not plain.keys() & dict(PRECISIONS).keys()
    assert run_folder(tmp_path, plain) != run_folder(tmp_path, other)
    for kept, run in ((plain, other), (other, plain)):
        checkpoint = read_checkpoint(save(CheckpointStore(tmp_path / "run", kept), 1))
        with pytest.raises(UserError, match=f"of another run: {name} was"):
            check_same_run(checkpoint, run)
        check_same_run(checkpoint, kept)


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
