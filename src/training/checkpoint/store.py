"""Checkpoints on disk, complete or not there: files, then a manifest with their sums, a rename."""

import contextlib
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from src.errors import UserError
from src.files.atomic import replacing_folder

MANIFEST = "MANIFEST.json"
STATE = "state.safetensors"
METRICS = "metrics.jsonl"
NUM_KEPT = 2
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    run: dict[str, Any]
    """What the run is: its settings and the sums of its files."""
    progress: dict[str, Any]


class CheckpointStore:
    """Writes the checkpoints of one run: the last written is kept, with the newest one beside it.

    Of two processes that train the same run at the same time, the second takes `folder-2`.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder, self._lock = _claim(folder)
        self._run = dict(run)

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
        # Of a run that began anew there may be older ones of later steps, corrupt or complete.
        others = [other for other in checkpoint_folders(self.folder) if other != folder]
        for old in others[NUM_KEPT - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
        return folder


def _claim(folder: Path) -> tuple[Path, FileLock]:
    """Return the first of folder, folder-2, ... that no other process writes to, and its lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        lock = FileLock(place.with_name(f".{place.name}.lock"))
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            return place, lock
    raise AssertionError("there is always another name")


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return a run's newest checkpoint whose files are what its manifest says."""
    places = [folder, *folder.parent.glob(f"{folder.name}-[0-9]*")]
    found = [checkpoint for place in places for checkpoint in checkpoint_folders(place)]
    for checkpoint in sorted(found, key=lambda path: path.name, reverse=True):
        try:
            return read_checkpoint(checkpoint)
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
        raise UserError(f"{name}: expected a folder with a complete {MANIFEST}") from None
    if not {STATE, METRICS} <= files.keys():
        raise UserError(f"{name}: expected {STATE} and {METRICS}")
    for file, (size, digest) in files.items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{name}: {file} is missing or cut short")
        if hash_file(path) != digest:
            raise UserError(f"{name}: {file} is not what was written")
    return Checkpoint(folder, step, run, progress)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
