"""All GPUs of the machine through the real launcher: ZeRO-2 and ZeRO-3, and their speed-up."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import TEXTS, large_model
from benchmarks.gpu.stage import Stage
from src.environment import read_train_environment
from src.model.precision import dtype_name
from src.settings import TrainSettings
from src.training.supervise.supervisor import run_workers

MICRO_BATCH = 4
LEAST_TOKENS = 10
"""Of a text."""
TOLERANCE = 0.05
"""Of a loss: the ranks add up in another order."""

Records = Sequence[dict[str, Any]]


def run(stage: Stage) -> None:
    count = 2 if stage.is_tiny else torch.cuda.device_count()
    if count == 1:
        return stage.record("several ranks", "left out", note="there is one GPU")
    length, num_steps = (32, 3) if stage.is_tiny else (2048, 6)
    data = stage.work / "gpus.jsonl"
    num_texts = 2 * count * MICRO_BATCH * length // LEAST_TOKENS
    rows = (json.dumps({"text": TEXTS[n % len(TEXTS)]}) for n in range(num_texts))
    data.write_text("\n".join(rows))
    settings = {
        "train_batch_size": count * MICRO_BATCH,
        "micro_batch_size": MICRO_BATCH,
        "pack_sequences": True,
        "wrap_packed_sequences": True,
        "chunk_size": length,
        "max_steps": num_steps,
        "num_train_epochs": num_steps,
        "run_validation": False,
    }
    alone = stage.section(train, stage, data, settings, 1, 2)
    for zero_stage in (2, 3):
        together = stage.section(train, stage, data, settings, count, zero_stage)
        if alone and together:
            compare(stage, f"{count} ranks, ZeRO-{zero_stage}", together, alone)


def train(
    stage: Stage, data: Path, settings: dict[str, Any], num_processes: int, zero_stage: int
) -> Records:
    """Return the records of the steps of a training, each of the same global batch."""
    variables = {"NUM_PROCESSES": num_processes, "ZERO_STAGE": zero_stage}
    environment = read_train_environment(
        {"DTYPE": dtype_name(stage.dtype), **{name: str(n) for name, n in variables.items()}}
    )
    folder, records = str(large_model(stage)), []
    run_workers(
        TrainSettings(
            base_model=folder,
            base_model_dir=folder,
            train_data=str(data),
            train_data_name=data.name,
            environment=stage.on_device(environment),
            **settings,
        ),
        stage.new_folder("gpus"),
        on_metric=records.append,
    )
    stage.record(
        f"{num_processes} ranks, ZeRO-{zero_stage}",
        speed(records),
        "tokens/s",
        note=f"{len(records)} steps, loss {records[0]['loss']:.3f} to {records[-1]['loss']:.3f}",
    )
    return records


def speed(records: Records) -> float:
    """Return tokens a second, without the steps that warm up."""
    return statistics.median(record["tokens_per_second"] for record in records[2:])


def compare(stage: Stage, name: str, together: Records, alone: Records) -> None:
    difference = max(abs(a["loss"] - b["loss"]) for a, b in zip(together, alone, strict=True))
    stage.record(
        f"{name}: speed-up",
        speed(together) / speed(alone),
        "times",
        is_right=difference < TOLERANCE,
        note=f"losses differ by at most {difference:.4f} from those of one rank",
    )
