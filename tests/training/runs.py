"""Settings of the runs that tests compare, and their losses."""

import json
from dataclasses import replace
from pathlib import Path

from src.settings import TrainSettings


def on_processes(settings: TrainSettings, num_processes: int) -> TrainSettings:
    """Return the settings of a run on so many processes of this machine."""
    return replace(settings, environment=replace(settings.environment, num_processes=num_processes))


CURVE = {"learning_rate": 3e-3, "train_batch_size": 8, "num_train_epochs": 4, "warmup_ratio": 0.1}


def metrics(output: Path) -> list[dict[str, float]]:
    """Return what a run recorded, without the speeds."""
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "tokens_per_second"} for record in records]


def losses(output: Path) -> list[float]:
    """Return the loss of each step."""
    return [record["loss"] for record in metrics(output) if "loss" in record]
