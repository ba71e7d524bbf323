"""Where the checkpoints of a run lie, and the one to go on from."""

import tempfile
from dataclasses import replace
from pathlib import Path

from src.errors import UserError
from src.settings import TrainSettings
from src.training.checkpoint.run_identity import check_same_run, describe_run, run_folder
from src.training.checkpoint.store import newest_checkpoint, read_checkpoint


def check_checkpoints(settings: TrainSettings) -> None:
    """Check all that can be checked before the base model is there.

    Raises UserError for a CHECKPOINT_DIR that cannot be written to, and for a checkpoint that is
    corrupt or not there.
    """
    name = settings.environment.checkpoint_dir
    if name is None:
        if settings.resume_from or settings.save_on_cancel:
            asked = "resume_from" if settings.resume_from else "save_on_cancel"
            raise UserError(f"{asked}: the server has no CHECKPOINT_DIR to keep checkpoints in")
        return
    root = Path(name).resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UserError(
            f"CHECKPOINT_DIR: expected a folder that can be written to, found {str(root)!r} "
            f"({error.strerror})"
        ) from None
    if settings.resume_from and settings.resume_from != "auto":
        read_checkpoint(_asked_folder(root, settings.resume_from))


def locate_checkpoints(settings: TrainSettings) -> TrainSettings:
    """Return the settings with this run's folder and the checkpoint to go on from.

    Raises UserError for a checkpoint of another run.
    """
    if settings.environment.checkpoint_dir is None:
        return settings
    root, run = Path(settings.environment.checkpoint_dir).resolve(), describe_run(settings)
    folder = run_folder(root, run)
    checkpoint = None
    if settings.resume_from == "auto":
        checkpoint = newest_checkpoint(folder)
        if checkpoint is None:
            print("resume_from: there is no checkpoint of this run; it starts anew", flush=True)
    elif settings.resume_from:
        checkpoint = read_checkpoint(_asked_folder(root, settings.resume_from))
        check_same_run(checkpoint, run)
    return replace(
        settings,
        checkpoint_folder=str(folder),
        resume_from=None if checkpoint is None else str(checkpoint.folder),
    )


def _asked_folder(root: Path, name: str) -> Path:
    folder = (root / name).resolve()
    if not folder.is_relative_to(root):
        raise UserError("resume_from: expected auto or a folder below CHECKPOINT_DIR")
    return folder
