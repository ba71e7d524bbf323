"""Settings of the runs that tests compare, and their losses."""

import json
from pathlib import Path


def losses(output: Path) -> list[float]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


CURVE = {"learning_rate": 3e-3, "train_batch_size": 8, "num_train_epochs": 4, "warmup_ratio": 0.1}
