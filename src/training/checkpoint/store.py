"""Checkpoints, whole or not there: files, then a manifest with their sums, then a rename."""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.files.atomic import replacing_folder
from src.files.printable import show_bytes
from src.settings import TrainSettings
from src.weights.base_model.fingerprint import fingerprint_base_model

MANIFEST = "MANIFEST.json"
STATE = "state.safetensors"
METRICS = "metrics.jsonl"
NUM_KEPT = 2
_NAME = re.compile(r"step-(\d{8})")
_NOT_THE_RUN = frozenset(
    {
        *("base_model", "base_model_dir", "train_data", "train_data_name"),
        *("validation_data", "validation_data_name"),
        *("checkpoint_folder", "checkpoint_seconds", "resume_from", "save_on_cancel"),
    }
)
"""Settings that say where things lie, and not what the run computes."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    step: int
    run: dict[str, Any]
    """What the run is: its settings and the sums of its files."""
    progress: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run: the last written is kept, with the newest one beside it."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder, self._run = folder, dict(run)

    def save(
        self, step: int, progress: Mapping[str, Any], write_files: Callable[[Path], None]
    ) -> Path:
        """Write a checkpoint and return its folder.

        Raises OSError if the disk does not take it; what was there before stays.
        """
        folder = self.folder / f"step-{step:08d}"
        with replacing_folder(folder) as partial:
            write_files(partial)
            files = {
                path.name: {"size": path.stat().st_size, "sha256": hash_file(path)}
                for path in sorted(partial.iterdir())
            }
            manifest = {"step": step, "run": self._run, "progress": progress, "files": files}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2))
        # Of a run that began anew there may be older ones of later steps, torn or whole.
        others = [other for other in checkpoint_folders(self.folder) if other != folder]
        for old in others[NUM_KEPT - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose files are what its manifest says."""
        for folder in checkpoint_folders(self.folder):
            try:
                return read_checkpoint(folder)
            except UserError as error:
                print(f"warning: {error}", flush=True)
        return None


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the folders of checkpoints, the newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return a checkpoint whose files are all as its manifest says.

    Raises UserError that names the first one that is not.
    """
    name = f"checkpoint {folder.name}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        step, run, progress = int(manifest["step"]), dict(manifest["run"]), manifest["progress"]
        files = {Path(f).name: (a["size"], a["sha256"]) for f, a in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{name}: expected a folder with a whole {MANIFEST}") from None
    if not {STATE, METRICS} <= files.keys():
        raise UserError(f"{name}: expected {STATE} and {METRICS}")
    for file, (size, digest) in files.items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{name}: {file} is missing or cut short")
        if hash_file(path) != digest:
            raise UserError(f"{name}: {file} is not what was written")
    return Checkpoint(folder, step, run, progress)


def describe_run(settings: TrainSettings) -> dict[str, Any]:
    """Return what makes a run this run: settings, files and base model."""
    asked = {k: v for k, v in asdict(settings).items() if k not in _NOT_THE_RUN}
    files = {
        "train_data": Path(settings.train_data),
        "validation_data": settings.validation_data and Path(settings.validation_data),
    }
    sums = {name: hash_file(path) if path else None for name, path in files.items()}
    return asked | sums | {"base model": fingerprint_base_model(Path(settings.base_model_dir))}


def run_folder(root: Path, run: Mapping[str, Any]) -> Path:
    """Return the folder of a run's checkpoints."""
    text = json.dumps(dict(run), sort_keys=True)
    return root / f"run-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_same_run(checkpoint: Checkpoint, run: Mapping[str, Any]) -> None:
    """Raise UserError that names the first difference to the run of a checkpoint."""
    for name, value in run.items():
        found = checkpoint.run.get(name)
        if found != value:
            files = name in ("train_data", "validation_data", "base model")
            raise UserError(
                f"resume_from: the checkpoint is of another run: {name} "
                + ("is another file" if files else f"was {found!r}, and is {value!r} now")
            )


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_full(error: Exception, folder: Path, needed: int) -> str | None:
    """Return one sentence if an error says that a disk is full."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    is_full = getattr(error, "errno", None) in codes or any(
        f"os error {code}" in str(error) for code in codes
    )
    if not is_full:
        return None
    free = shutil.disk_usage(folder).free
    return f"the disk is full: about {show_bytes(needed)} are needed, {show_bytes(free)} free"
