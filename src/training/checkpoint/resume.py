"""What a run keeps on its way, and how it goes on from there."""

import shutil
from functools import partial
from pathlib import Path

import torch.distributed as dist

from src.settings import TrainSettings
from src.training.checkpoint.checkpointer import Checkpointer, read_state
from src.training.checkpoint.store import METRICS, CheckpointStore, describe_run, read_checkpoint
from src.training.deepspeed_engine import gather_state, restore_state
from src.training.loop import Run
from src.training.lora_model import LoraModel
from src.training.results.metrics import Progress
from src.training.results.output import OutputWriter
from src.training.trainers import Trainer


def open_checkpointer(
    run: Run,
    run_dir: Path,
    trainer: Trainer,
    adapted: LoraModel,
    writer: OutputWriter,
) -> Checkpointer:
    """Return what saves this run between its steps, and when it has to stop."""
    return Checkpointer(
        run_dir,
        _open_store(run.settings, reads_data=run.rank == 0),
        trainer,
        rank=run.rank,
        seconds=run.settings.checkpoint_seconds,
        busy=run.busy,
        is_sharded=adapted.is_sharded,
        gather_state=partial(gather_state, trainer.engine, adapted.adapter),
        gather_adapter=adapted.gather_adapter,
        write_adapter=lambda folder, tensors, step: writer.write(
            folder, tensors, losses={}, stopped_after=step
        ),
    )


def _open_store(settings: TrainSettings, *, reads_data: bool) -> CheckpointStore | None:
    """Return where this run's checkpoints go; only the rank that writes needs to know the run."""
    if settings.checkpoint_folder is None:
        return None
    run = describe_run(settings) if reads_data else {}
    return CheckpointStore(Path(settings.checkpoint_folder), run)


def resume(
    folder: Path,
    run: Run,
    run_dir: Path,
    trainer: Trainer,
    adapted: LoraModel,
    progress: Progress,
) -> int:
    """Put back what a checkpoint holds, and return how many steps are done."""
    checkpoint = read_checkpoint(folder)
    trainer.prime(run.step_plan.longest_micro_batch(run.rank), run.train_data)
    state = read_state(checkpoint)
    restore_state(trainer.engine, adapted.adapter, state, step=checkpoint.step)
    # Until here a run that is asked to stop has nothing to keep.
    trainer.num_steps_done = checkpoint.step
    progress.resume(checkpoint.progress)
    run.note_step(checkpoint.step)
    if run.rank == 0:
        shutil.copyfile(checkpoint.folder / METRICS, run_dir / METRICS)
    return checkpoint.step


def where_it_is_kept(checkpointer: Checkpointer) -> str:
    """Keep the adapter, and return where it is; every rank takes part and tells the same."""
    folder = checkpointer.keep_adapter()
    told = [folder and f"; the adapter before it is in {folder.parent.name}/{folder.name}"]
    dist.broadcast_object_list(told, 0)
    return told[0] or ""
