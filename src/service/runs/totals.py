"""What a training comes to: read off the manifest in its archive."""

import json
import tarfile
from pathlib import Path


def read_totals(archive: Path) -> dict[str, int]:
    """Return the steps that were taken and the tokens that were read in them."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile("training.json")
        assert file is not None
        manifest = json.load(file)
    settings, counts = manifest["settings"], manifest["data"]["train"]
    num_steps = settings["num_steps"]
    epochs = settings["num_train_epochs"]
    if settings["max_steps"] is not None:
        steps_of_epoch = -(-manifest["data"]["sequences"] // settings["train_batch_size"])
        epochs = min(epochs, num_steps / steps_of_epoch)
    return {"num_steps": num_steps, "trained_tokens": round(counts["tokens"] * epochs)}
