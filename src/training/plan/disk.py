"""What a run will write to disk, known before the base model is loaded."""

import tempfile
from pathlib import Path

from src.files.disk_space import RUN_FOLDER, SpaceNeed, check_disk_space
from src.training.checkpoint.store import NUM_KEPT, checkpoint_folders
from src.training.plan.plan import TrainingPlan

_STATE_BYTES = 12
"""A checkpoint holds each parameter and the optimizer's two means of it in float32."""
_ABOUT_BYTES = 100_000
"""Of manifest, metrics and report, which log some two hundred steps however long a run is."""


def check_disks(plan: TrainingPlan, run_dir: Path) -> str:
    """Return the line that tells what will be written and what is free.

    Raises UserError if a disk has no room for it.
    """
    parameters = plan.trainable_parameters
    if parameters is None:
        return "plan: disk space is not estimated for this architecture"
    adapter = parameters * plan.resources.dtype.itemsize + _ABOUT_BYTES
    needs = [
        SpaceNeed("adapter", RUN_FOLDER, run_dir, adapter),
        SpaceNeed("archive", "the temporary files", Path(tempfile.gettempdir()), adapter),
    ]
    if plan.settings.checkpoint_folder is not None:
        folder = Path(plan.settings.checkpoint_folder)
        # A new one is complete before the oldest goes.
        num_new = min(NUM_KEPT + 1, plan.steps.num_steps) - len(checkpoint_folders(folder))
        state = parameters * _STATE_BYTES + _ABOUT_BYTES
        needs += [
            SpaceNeed("checkpoints", "CHECKPOINT_DIR", folder, max(1, num_new) * state),
            SpaceNeed("adapter", "CHECKPOINT_DIR", folder, adapter),
        ]
    return f"plan: disk: {'; '.join(check_disk_space(needs))}"
