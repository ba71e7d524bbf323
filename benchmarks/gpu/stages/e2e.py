"""Whole trainings by the project's supervisor and workers, and their adapters in the engine."""

import json
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.client import GREEDY, Client
from benchmarks.gpu.stage import Stage
from src.chat.prompt_encoder import open_prompt_encoder
from src.cli.docstrings import docstring_pairs
from src.cli.tiny_model import make_base_model
from src.environment import read_train_environment
from src.model.precision import dtype_name
from src.serving.engine.engine import Engine
from src.settings import TrainSettings
from src.training.supervise.supervisor import run_workers
from src.weights.adapter.adapter import read_adapter

RECITED = 0.6
"""Share of the answers that an adapter must know."""


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    output: Path
    losses: dict[int, float]
    """By step."""


def run(stage: Stage) -> None:
    trainings = Trainings(stage)
    found = trainings.run_all()
    stage.section(compare, stage, "resumed against one run", found, "resumed", "lora", 0.02)
    stage.section(compare, stage, "ZeRO-3 against ZeRO-2", found, "zero3", "lora", 0.1)
    stage.section(compare_bytes, stage, found, "deterministic", "deterministic again")
    for name in ("lora", "qlora", "float8"):
        if name in found:
            stage.section(recite, stage, trainings, name, found[name])


class Trainings:
    """One model and one data file, trained in several ways at the same time."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._root = stage, stage.work / "trainings"
        self._num_devices = 1 if stage.is_tiny else torch.cuda.device_count()
        pairs = [pair for pair in docstring_pairs() if 10 < len(pair["completion"]) < 80]
        self.examples = pairs[: 12 if stage.is_tiny else 40]
        copies, self._epochs = (1, 2) if stage.is_tiny else (4, 4)
        self.folder, data = self._root / "base-model", self._root / "data.jsonl"
        self._root.mkdir()
        texts = [f"{pair['prompt']}\n{pair['completion']}" for pair in self.examples]
        make_base_model(self.folder, texts)
        rows = self.examples * copies
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        held_out = 2 if stage.is_tiny else 4
        self._num_steps = -(-(len(rows) - held_out) // 4) * self._epochs
        self.common: dict[str, Any] = {
            "base_model": str(self.folder),
            "base_model_dir": str(self.folder),
            "train_data": str(data),
            "train_data_name": data.name,
            "num_train_epochs": self._epochs,
            "num_validation_samples": held_out,
            "learning_rate": 3e-3,
            "learning_rate_schedule": "constant",
            "warmup_ratio": 0.0,
            "lora_dropout": 0.0,
        }

    def run_all(self) -> dict[str, Trained]:
        """Run all trainings; return those that have ended well, by name."""
        checkpoints = {"checkpoint_folder": str(self._root / "checkpoints")}
        half = {"max_steps": self._num_steps // 2, "checkpoint_seconds": 0, **checkpoints}
        few = {"max_steps": min(12, self._num_steps)}
        packed = {"pack_sequences": True, "chunk_size": 1024, "train_batch_size": 1}
        dropped = {"lora_dropout": 0.05, "prompt_loss_weight": 0.1}
        zero3, deterministic = {"ZERO_STAGE": "3"}, {"DETERMINISTIC": "1"}
        ways: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
            "lora": ({"validation_prompt": self.examples[0]["prompt"]}, {}),
            "zero3": (few, zero3),
            "zero3, no validation": ({**few, "run_validation": False}, zero3),
            "qlora": ({"peft_method": "qlora"}, {}),
            "packed, dropout, prompts": ({**packed, **dropped}, {}),
            "deterministic": ({**few, **dropped}, deterministic),
            "deterministic again": ({**few, **dropped}, deterministic),
        }
        if not self._stage.float8_refused:
            ways["float8"] = ({}, {"BASE_WEIGHTS": "fp8"})
        # On two cores two at a time are as fast, and take less memory; ranks wait for each other.
        is_alone = not self._stage.is_tiny and self._num_devices == 1
        with ThreadPoolExecutor(len(ways) + 1 if is_alone else 2) as pool:
            jobs: dict[str, Future[Trained | None]] = {
                name: pool.submit(self._stage.section, self._train, name, *way)
                for name, way in ways.items()
            }
            jobs["resumed"] = pool.submit(self._stage.section, self._resume, half)
            found = {name: job.result() for name, job in jobs.items()}
        return {name: trained for name, trained in found.items() if trained}

    def _resume(self, half: dict[str, Any]) -> Trained:
        before = self._train("half", half, {})
        checkpoints = Path(half["checkpoint_folder"]).glob("step-*")
        last = max(checkpoints, key=lambda path: int(re.sub(r"\D", "", path.name)))
        again = {"checkpoint_folder": str(self._root / "again"), "resume_from": str(last)}
        resumed = self._train("resumed", again, {})
        after = {step: resumed.losses[step] for step in resumed.losses if step > max(before.losses)}
        return Trained(resumed.output, after)

    def _train(self, name: str, settings: dict[str, Any], variables: dict[str, str]) -> Trained:
        num_processes = gcd(settings.get("train_batch_size", 4), self._num_devices)
        common = {"NUM_PROCESSES": str(num_processes), "ZERO_STAGE": "2"}
        environment = read_train_environment(
            {**common, "DTYPE": dtype_name(self._stage.dtype), **variables}
        )
        records: list[dict[str, Any]] = []
        run_dir = self._root / re.sub(r"\W+", "-", name)
        run_dir.mkdir()
        started = time.monotonic()
        output = run_workers(
            TrainSettings(
                **{**self.common, **settings}, environment=self._stage.on_device(environment)
            ),
            run_dir,
            on_metric=records.append,
        )
        assert output is not None  # this machine has the data
        losses = {record["step"]: record["loss"] for record in records if "loss" in record}
        first, last = next(iter(losses.values())), losses[max(losses)]
        limit = 0.3 if max(losses) == self._num_steps else 0.95 * first
        self._stage.record(
            f"{name}: last loss",
            last,
            is_right=self._stage.is_tiny or last < limit,
            note=f"{max(losses)} steps, first loss {first:.3f}, {time.monotonic() - started:.1f} s",
        )
        return Trained(output, losses)


def compare(
    stage: Stage, name: str, found: dict[str, Trained], one: str, other: str, limit: float
) -> None:
    """Record how far the losses of two trainings are, at the steps that both have taken."""
    a, b = found[one].losses, found[other].losses
    steps = sorted(a.keys() & b.keys())
    difference = max(abs(a[step] - b[step]) for step in steps)
    note = f"{len(steps)} steps from {steps[0]}"
    stage.record(f"losses, {name}", difference, is_right=difference <= limit, note=note)


def compare_bytes(stage: Stage, found: dict[str, Trained], one: str, other: str) -> None:
    """Record whether two trainings have made the same adapter, byte for byte."""
    files = [found[name].output / "adapter_model.safetensors" for name in (one, other)]
    a, b = (file.read_bytes() for file in files)
    stage.record("deterministic, twice", "equal" if a == b else "different", is_right=a == b)


def recite(stage: Stage, trainings: Trainings, name: str, trained: Trained) -> None:
    """Record how many answers the adapter knows by heart, in the engine."""
    engine = Engine(
        trainings.folder,
        in_4bit=name == "qlora",
        dtype=dtype_name(stage.dtype),
        max_slots=4,
        max_adapters=2,
    )
    try:
        file = read_adapter(trained.output, engine.linear_shapes)
        adapter = engine.load_adapter(file, key=name)
        encoder = open_prompt_encoder(TrainSettings(**trainings.common))
        asked, num_right = trainings.examples[:8], 0
        for example in asked:
            prompt_ids = encoder.prompt_ids(example["prompt"])
            options = {**GREEDY, "max_new_tokens": 96, "ignores_end": False}
            answer = Client(engine, prompt_ids, adapter, **options).wait(stage.seconds_left)
            ids = [token for token in answer.ids if token not in engine.tokenizer.end_ids]
            num_right += engine.tokenizer.decode(ids).strip() == example["completion"].strip()
        stage.record(
            f"{name}: answers that the adapter recites",
            num_right,
            f"of {len(asked)}",
            is_right=stage.is_tiny or num_right >= RECITED * len(asked),
        )
    finally:
        engine.close()
