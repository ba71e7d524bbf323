"""What is saved, when, and by all ranks together; what is put back is what was saved."""

import os
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from src.model.adapter import copy_to_cpu
from src.training.checkpoint.checkpointer import Checkpointer, pause_seconds
from src.training.checkpoint.store import newest_checkpoint
from src.training.deepspeed_engine import join_ranks
from src.training.supervise.run_folder import RunFolder
from tests.training.ranks import RanksFailed, call_in_ranks, run_ranks
from tests.training.runs import CURVE, metrics


@pytest.mark.parametrize("asked", [0, 1, 20, 60, 300, 10_000])
@pytest.mark.parametrize("cost", [0.0, 0.01, 0.6, 2.9, 3.1, 100.0])
def test_cheap_checkpoints_come_every_minute(asked: float, cost: float):
    """A minute's work is all that is lost, unless saving it would take too much of the time."""
    pause = pause_seconds(asked, cost=cost)
    assert pause <= asked
    assert pause <= 60 or cost > 0.05 * 60
    assert cost <= 0.05 * pause or pause == asked


@pytest.fixture
def train(new_run_dir, make_settings, tmp_path: Path):
    """Return a function that trains with a checkpoint after every step."""

    def run(*, num_processes: int, prepare=None, **values) -> Path:
        settings = make_settings(**{**CURVE, "checkpoint_seconds": 0, **values})
        settings = replace(settings, checkpoint_folder=str(tmp_path / "checkpoints" / "run"))
        return run_ranks(settings, new_run_dir(), num_processes=num_processes, prepare=prepare)

    return run


def fail_before_step(asked: int) -> None:
    from src.training import loop

    step_seed = loop.step_seed

    def failing(seed: int, step: int, rank: int) -> int:
        if (step, rank) == (asked, 0):  # once it has written the checkpoint before
            raise RuntimeError("a fault, as asked")
        return step_seed(seed, step, rank)

    loop.step_seed = failing


@pytest.mark.parametrize(
    ("before", "after"), [((2, "2"), (1, "2")), ((1, "2"), (2, "2")), ((1, "2"), (2, "3"))]
)
def test_a_checkpoint_resumes_on_other_ranks(train, tmp_path: Path, before, after):
    """The state holds no trace of how many ranks there were, nor of how they shared it."""
    whole = train(num_processes=1)
    shutil.rmtree(tmp_path / "checkpoints")
    (num_before, os.environ["ZERO_STAGE"]), (num_after, stage_after) = before, after
    with pytest.raises(RanksFailed, match="a fault, as asked"):
        train(num_processes=num_before, prepare=partial(fail_before_step, 7))
    checkpoint = newest_checkpoint(tmp_path / "checkpoints" / "run")
    assert checkpoint is not None
    os.environ["ZERO_STAGE"] = stage_after
    resumed = train(num_processes=num_after, resume_from=str(checkpoint.folder))
    assert checkpoint.step == 6
    expected, found = metrics(whole), metrics(resumed)
    assert len(found) == len(expected)
    for record, other in zip(expected, found, strict=True):
        assert other == pytest.approx(record, abs=1e-3, rel=1e-3)


def keep_throughout_the_restore() -> None:
    """Have the adapter kept at every moment of a restore, as the watching thread may do."""
    from src.training import replicated

    resume = Checkpointer.resume

    def resume_and_keep(self: Any, *arguments: Any) -> int:
        def keep() -> None:
            self._write_adapter(*self._trainer.gather_adapter())

        def keep_around(name: str) -> None:
            function = getattr(replicated, name)

            def wrapped(*args: Any, **options: Any) -> Any:
                keep()
                result = function(*args, **options)
                keep()
                return result

            setattr(replicated, name, wrapped)

        for name in ("restore_parts", "set_num_steps"):
            keep_around(name)
        trainer, kept_before = self._trainer, self._kept
        step = resume(self, *arguments)
        print("kept during the restore:", self._kept or kept_before, flush=True)
        keep()
        print("kept after the restore:", self._kept, "of", trainer.num_steps_done, flush=True)
        return step

    Checkpointer.resume = resume_and_keep


def test_a_stop_while_a_checkpoint_is_put_back_keeps_what_is_there(train, tmp_path: Path, capfd):
    """The adapter of the step before is not replaced by one that is not put back yet."""
    train(num_processes=1, max_steps=3, run_validation=False)
    checkpoint = newest_checkpoint(tmp_path / "checkpoints" / "run")
    assert checkpoint is not None
    train(
        num_processes=1,
        max_steps=3,
        run_validation=False,
        resume_from=str(checkpoint.folder),
        prepare=keep_throughout_the_restore,
    )
    logged = capfd.readouterr().out
    assert "kept during the restore: None\n" in logged
    assert "kept after the restore: run/stopped-step-00000003 of 3\n" in logged


def keep_what_cannot_be_kept(run_dir: Path, settings: Any, fault: str) -> None:
    """Fail to keep an adapter on the main rank, and then meet the other rank."""
    signal.alarm(60)
    join_ranks(device := torch.device("cpu"))
    rank = dist.get_rank()
    value = torch.tensor(float("nan") if fault == "FloatingPointError" else 1.0)

    def write(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    run: Any = SimpleNamespace(
        settings=settings, rank=rank, is_main=rank == 0, main_rank=0,
        status=SimpleNamespace(busy=nullcontext),
    )  # fmt: skip
    trainer: Any = SimpleNamespace(
        engine=SimpleNamespace(device=device), is_sharded=True, num_steps_done=3,
        gather_adapter=lambda: (3, copy_to_cpu([("matrix", value)])),
    )  # fmt: skip
    writer: Any = SimpleNamespace(write=write)
    checkpointer = Checkpointer(run, RunFolder(run_dir), trainer, writer)
    try:
        checkpointer.keep_adapter()
    except (FloatingPointError, OSError) as error:
        # The ranks go on together: a collective of one of them alone would wait for ever.
        dist.barrier()
        log(f"rank {rank}: {type(error).__name__}: {error}")
    failure = checkpointer.keep_after(FloatingPointError("step 4: the loss is not finite"))
    dist.barrier()
    log(f"rank {rank}: {failure}")


def log(line: str) -> None:
    """Write a line at once: the ranks share the file."""
    os.write(1, f"{line}\n".encode())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("FloatingPointError", "the adapter is not finite: matrix"), ("OSError", "no space left")],
)
def test_what_cannot_be_kept_fails_on_all_ranks_alike(
    make_settings, tmp_path: Path, fault: str, reason: str
):
    settings = replace(make_settings(), checkpoint_folder=str(tmp_path / "checkpoints" / "run"))
    call_in_ranks(
        keep_what_cannot_be_kept, tmp_path, settings, fault, num_processes=2, log=tmp_path / "log"
    )
    logged = (tmp_path / "log").read_text()
    for rank in (0, 1):
        assert f"rank {rank}: {fault}: {reason}\n" in logged
        assert f"rank {rank}: step 4: the loss is not finite\n" in logged
