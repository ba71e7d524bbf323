"""Keeps what a run has reached: checkpoints while it runs, and its adapter when it has to stop."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from src.files.atomic import replacing_file, replacing_folder
from src.training.checkpoint.store import (
    METRICS,
    STATE,
    Checkpoint,
    CheckpointStore,
    disk_full,
)
from src.training.results.metrics import Progress
from src.training.supervise.stop import STOP_FILE, STOPPED_FILE
from src.training.trainers import Trainer

POLL_SECONDS = 0.1
OFTEN_SECONDS, SELDOM_SECONDS = 30.0, 60.0
"""From the end of one checkpoint to the end of the next: where they cost little, and some more."""
LITTLE, MOST = 0.02, 0.05
"""Shares of the time that checkpoints may take before they become rarer."""


class StoppedEarly(Exception):
    """The run was asked to stop and has kept what there was."""


class Checkpointer:
    """Saves between steps; all ranks take part, rank 0 decides and writes."""

    def __init__(
        self,
        run_dir: Path,
        store: CheckpointStore | None,
        trainer: Trainer,
        *,
        rank: int,
        seconds: float,
        busy: Callable[[], AbstractContextManager[None]],
        is_sharded: bool,
        gather_state: Callable[[], dict[str, Tensor]],
        gather_adapter: Callable[[], dict[str, Tensor]],
        write_adapter: Callable[[Path, dict[str, Tensor], int], None],
    ) -> None:
        """Without a store nothing is kept; `is_sharded` says that only all ranks together can."""
        self._run_dir, self._store, self._trainer, self._rank = run_dir, store, trainer, rank
        self._seconds, self._last, self._cost = seconds, time.monotonic(), 0.0
        self._busy, self._gather_state, self._gather_adapter = busy, gather_state, gather_adapter
        self._write_adapter = write_adapter
        self._kept_step = 0
        if rank == 0 and store is not None and not is_sharded:
            threading.Thread(target=self._watch, daemon=True).start()

    def after_step(self, step: int, progress: Progress) -> None:
        """Save what is due; raises StoppedEarly once everything is kept that should be."""
        if self._store is None:
            return
        wish = torch.zeros((), device=self._trainer.engine.device)
        if self._rank == 0:
            wish += 2 * self._is_stopping()
            pause = seconds_between(self._seconds, cost=self._cost)
            wish += time.monotonic() - self._last >= pause
        if dist.get_world_size() > 1:
            dist.broadcast(wish, 0)
        if wish == 0:
            return
        with self._busy():
            started = time.monotonic()
            tensors = self._gather_state()
            if self._rank == 0:
                self._save(self._store, step, tensors, progress)
            self._last = time.monotonic()
            self._cost = self._last - started
            if wish >= 2:
                self.keep_adapter()
                raise StoppedEarly

    def keep_adapter(self) -> Path | None:
        """Write the adapter as a finished run would, marked as stopped early; all take part."""
        if self._store is None:
            return None
        with self._trainer.changing:
            step, tensors = self._trainer.num_steps_done, self._gather_adapter()
            return self._write(self._store, step, tensors) if self._rank == 0 and step else None

    def keep_finished(self, output: Path) -> None:
        """Put a copy of the finished adapter beside the checkpoints, on rank 0.

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
            reason = disk_full(error, self._store.folder, needed) or str(error)
            print(f"warning: no copy of the adapter in CHECKPOINT_DIR: {reason}", flush=True)

    def _watch(self) -> None:
        """Keep the adapter of the last finished step, however long the next one takes."""
        while not self._is_stopping():
            time.sleep(POLL_SECONDS)
        self.keep_adapter()

    def _is_stopping(self) -> bool:
        return (self._run_dir / STOP_FILE).exists()

    def _write(self, store: CheckpointStore, step: int, tensors: dict[str, Tensor]) -> Path:
        folder = store.folder / f"stopped-step-{step:08d}"
        if step != self._kept_step:
            with replacing_folder(folder) as partial:
                self._write_adapter(partial, tensors, step)
            self._kept_step = step
            with replacing_file(self._run_dir / STOPPED_FILE) as partial:
                partial.write_text(json.dumps({"step": step, "folder": str(folder)}))
        return folder

    def _save(
        self, store: CheckpointStore, step: int, tensors: dict[str, Tensor], progress: Progress
    ) -> None:
        def write_files(folder: Path) -> None:
            save_file(tensors, folder / STATE)
            shutil.copyfile(self._run_dir / METRICS, folder / METRICS)

        try:
            folder = store.save(step, progress.state(), write_files)
            print(f"checkpoint: {folder.parent.name}/{folder.name}", flush=True)
        except (OSError, SafetensorError) as error:
            needed = sum(tensor.nbytes for tensor in tensors.values())
            reason = disk_full(error, store.folder, needed) or str(error)
            print(f"warning: no checkpoint after step {step}: {reason}", flush=True)


def seconds_between(asked: float, *, cost: float) -> float:
    """Return the pause after a checkpoint that took `cost` seconds: as asked, or less if cheap."""
    pause = max(OFTEN_SECONDS, cost / LITTLE)
    if cost <= MOST * SELDOM_SECONDS:
        pause = min(pause, SELDOM_SECONDS - cost)
    return min(asked, pause)


def read_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint; only safetensors are read, nothing is unpickled."""
    with safe_open(checkpoint.folder / STATE, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's noise, so that a resumed run draws what it would have drawn."""
    return hash((seed, step, rank)) % 2**63
