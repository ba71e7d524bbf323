"""When a run is saved, and what: its state between steps, its adapter when it has to stop."""

import shutil
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.files.atomic import replacing_folder
from src.files.disk_space import write_error_reason
from src.training.checkpoint.run_identity import describe_run
from src.training.checkpoint.store import METRICS, STATE, CheckpointStore, read_checkpoint
from src.training.context import Run, Trainer
from src.training.results.metrics import Progress
from src.training.results.output import OutputWriter
from src.training.supervise.run_folder import RunFolder

POLL_SECONDS = 0.1
MIN_PAUSE_SECONDS, MAX_SHARE = 60.0, 0.05
"""A minute's work is all that is lost, unless saving takes a larger share of the time."""


class StoppedEarly(Exception):
    """The run was asked to stop and has kept what there was."""


class Checkpointer:
    """Saves a run between its steps; all ranks call it, the main one decides and writes.

    Without a checkpoint folder in the settings nothing is kept.
    """

    def __init__(self, run: Run, folder: RunFolder, trainer: Trainer, writer: OutputWriter) -> None:
        self._run, self._folder, self._trainer, self._writer = run, folder, trainer, writer
        self._is_on = run.settings.checkpoint_folder is not None
        self._scale_name = f"loss_scale_{'mean' if trainer.is_sharded else 'sum'}"
        """In a checkpoint's numbers: what is scaled differs by orders of magnitude."""
        self._store: CheckpointStore | None = None
        self._plan_next_save(cost=0.0)
        self._writing = threading.Lock()
        self._kept: str | None = None
        if run.settings.checkpoint_folder is not None and run.is_main:
            place = Path(run.settings.checkpoint_folder)
            self._store = CheckpointStore(place, describe_run(run.settings))
            if not trainer.is_sharded:
                threading.Thread(target=self._keep_when_stopping, daemon=True).start()

    def resume(self, folder: Path, progress: Progress) -> int:
        """Put back what a checkpoint holds and return how many steps are done.

        The main rank reads it and sends it to the others, which may not see the folder.
        """
        checkpoint = read_checkpoint(folder) if self._run.is_main else None
        found = [checkpoint and (checkpoint.step, checkpoint.progress)]
        dist.broadcast_object_list(found, self._run.main_rank)
        assert found[0] is not None
        step, numbers = found[0]
        state = None
        if checkpoint is not None:
            state = load_file(folder / STATE)  # safetensors: nothing is unpickled
            shutil.copyfile(folder / METRICS, self._folder.metrics)
        self._trainer.restore_state(state, step=step, source=self._run.main_rank)
        progress.resume(numbers)
        if self._trainer.scaler.dynamic and self._scale_name in numbers:
            self._trainer.scaler.cur_scale = numbers[self._scale_name]
        self._run.status.note_step(step)
        return step

    def after_step(self, step: int, progress: Progress) -> None:
        """Save what is due; raises StoppedEarly once everything is kept that should be."""
        if not self._is_on:
            return
        should_save, should_stop = self._decide()
        if should_save or should_stop:
            with self._run.status.busy():
                self._save_state(step, progress)
                if should_stop:
                    self.keep_adapter()
                    raise StoppedEarly

    def _decide(self) -> tuple[bool, bool]:
        """Return whether to save and whether to stop, as the main rank says."""
        decision = torch.zeros(2, dtype=torch.bool, device=self._trainer.engine.device)
        if self._run.is_main:
            decision[0] = time.monotonic() >= self._next_save
            decision[1] = self._is_stopping()
        if dist.get_world_size() > 1:
            dist.broadcast(decision, self._run.main_rank)
        should_save, should_stop = decision.tolist()
        return should_save, should_stop

    def _save_state(self, step: int, progress: Progress) -> None:
        started = time.monotonic()
        tensors = self._trainer.gather_state()
        if self._store is None:
            return

        def write_files(folder: Path) -> None:
            save_file(tensors, folder / STATE)
            shutil.copyfile(self._folder.metrics, folder / METRICS)

        try:
            numbers = progress.state() | {self._scale_name: self._trainer.scaler.cur_scale}
            folder = self._store.save(step, numbers, write_files)
            print(f"checkpoint: {folder.parent.name}/{folder.name}", flush=True)
        except (OSError, SafetensorError) as error:
            needed = sum(tensor.nbytes for tensor in tensors.values())
            reason = write_error_reason(error, self._store.folder, needed)
            print(f"warning: no checkpoint after step {step}: {reason}", flush=True)
        self._plan_next_save(cost=time.monotonic() - started)

    def _plan_next_save(self, *, cost: float) -> None:
        pause = pause_seconds(self._run.settings.checkpoint_seconds, cost=cost)
        self._next_save = time.monotonic() + pause

    def keep_adapter(self) -> str | None:
        """Write the adapter as of a finished run, marked as stopped early; return where it is.

        All ranks take part. Raises the same FloatingPointError or OSError on all of them.
        """
        if not self._is_on:
            return None
        step, tensors = self._trainer.gather_adapter()
        outcome: list[str | OSError | None] = [None]
        if self._run.is_main:
            try:
                outcome = [self._write_adapter(step, tensors)]
            except OSError as error:
                outcome = [error]
        dist.broadcast_object_list(outcome, self._run.main_rank)
        (kept,) = outcome
        if isinstance(kept, OSError):
            raise kept
        return kept

    def keep_after(self, failure: FloatingPointError) -> FloatingPointError:
        """Keep the adapter from before a failure, and return the failure with where it is."""
        try:
            kept = self.keep_adapter()
        except (FloatingPointError, OSError):
            kept = None
        return FloatingPointError(
            str(failure) if kept is None else f"{failure}; the adapter before it is in {kept}"
        )

    def keep_finished(self, output: Path) -> None:
        """Put a copy of the finished adapter beside the checkpoints, on the main rank.

        The server may end before it has handed on the archive.
        """
        if self._store is None:
            return
        folder = self._store.folder / f"finished-step-{self._trainer.num_steps_done:08d}"
        try:
            with replacing_folder(folder) as partial:
                shutil.copytree(output, partial, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            needed = sum(path.stat().st_size for path in output.iterdir())
            reason = write_error_reason(error, self._store.folder, needed)
            print(f"warning: no copy of the adapter in CHECKPOINT_DIR: {reason}", flush=True)

    def _keep_when_stopping(self) -> None:
        """Keep the adapter of the last finished step, however long the next one takes."""
        while not self._is_stopping():
            time.sleep(POLL_SECONDS)
        self._write_adapter(*self._trainer.gather_adapter())

    def _is_stopping(self) -> bool:
        return self._folder.is_asked_to_stop()

    def _write_adapter(self, step: int, tensors: dict[str, Tensor]) -> str | None:
        """Write the adapter after a step, once; the watching thread may have done so."""
        assert self._store is not None
        with self._writing:
            if self._kept is None and step > 0:
                folder = self._store.folder / f"stopped-step-{step:08d}"
                with replacing_folder(folder) as partial:
                    self._writer.write(partial, tensors, losses={}, stopped_after=step)
                self._kept = f"{folder.parent.name}/{folder.name}"
                self._folder.write_stopped(step, folder)
            return self._kept


def pause_seconds(asked: float, *, cost: float) -> float:
    """Return the time from a checkpoint that took `cost` seconds to the next."""
    return min(asked, max(MIN_PAUSE_SECONDS, cost / MAX_SHARE))
