"""Which run a checkpoint is of: its settings, the user's files and the base model."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.settings import TrainSettings
from src.training.checkpoint.store import Checkpoint, hash_file
from src.weights.base_model.fingerprint import fingerprint_base_model

_NOT_THE_RUN = frozenset(
    {
        *("base_model", "base_model_dir", "train_data", "train_data_name"),
        *("validation_data", "validation_data_name"),
        *("checkpoint_folder", "checkpoint_seconds", "resume_from", "save_on_cancel"),
        "environment",
    }
)
"""Settings that say where things lie, and not what the run computes."""


def describe_run(settings: TrainSettings) -> dict[str, Any]:
    """Return what makes a run this run: settings, files and base model."""
    asked = {k: v for k, v in asdict(settings).items() if k not in _NOT_THE_RUN}
    environment = settings.environment
    precision = {
        "DTYPE": environment.dtype,
        "BASE_WEIGHTS": "fp8" if environment.in_float8 else None,
        "DETERMINISTIC": environment.deterministic,
    }
    # Those that are not set leave no trace: older checkpoints know nothing of them.
    asked |= {name: value for name, value in precision.items() if value}
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
    for name in {**run, **checkpoint.run}:
        found, value = checkpoint.run.get(name), run.get(name)
        if found != value:
            files = name in ("train_data", "validation_data", "base model")
            raise UserError(
                f"resume_from: the checkpoint is of another run: {name} "
                + ("is another file" if files else f"was {found!r}, and is {value!r} now")
            )
