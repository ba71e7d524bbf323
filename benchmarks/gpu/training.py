"""The project's model as one rank of a training loads it, with random data."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import synchronize
from src.data.packing import Span
from src.data.prepare import build_step_plan
from src.data.steps import MicroBatch
from src.data.token_file import TokenDataset, write_tokens
from src.data.tokenization import IGNORE_INDEX, TokenizedExample
from src.environment import read_train_environment
from src.model.precision import dtype_name
from src.settings import TrainSettings
from src.training.context import Run
from src.training.deepspeed_engine import join_ranks
from src.training.lora_model import load_lora_model
from src.training.plan.decide import make_plan
from src.training.plan.plan import TrainingPlan
from src.training.plan.resources import measure_resources
from src.training.replicated import ReplicatedTrainer
from src.training.supervise.heartbeat import RankStatus
from src.training.supervise.run_folder import RunFolder

PROMPT = 16
ONE_RANK = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "GROUP_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


class Training:
    """A base model with its adapter, and long examples of random tokens."""

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        name: str,
        *,
        length: int,
        variables: Mapping[str, str] | None = None,
        keeps_dequantized: bool = True,
        **settings: Any,
    ) -> None:
        """Load as the variables of the environment and the settings ask; examples have `length`."""
        self._length, started = length, time.monotonic()
        self._folder = RunFolder(stage.new_folder("training"))
        self.data = self._write_data()
        variables = {"DTYPE": dtype_name(stage.dtype), **(variables or {})}
        self._settings = TrainSettings(
            base_model=str(folder),
            base_model_dir=str(folder),
            train_data="random",
            train_data_name="random",
            run_validation=False,
            environment=read_train_environment(variables),
            **settings,
        )
        os.environ.update(ONE_RANK)
        self._device = stage.device
        if not torch.distributed.is_initialized():
            join_ranks(stage.device)
        self._resources = measure_resources(self._device, self._settings.environment)
        self.plan = self.plan_for(self._settings.lora_dropout)
        if self.plan.work and not keeps_dequantized:
            work = replace(self.plan.work, keeps_dequantized=False)
            self.plan = replace(self.plan, work=work)
        lines: list[str] = []
        self.model = load_lora_model(self.plan, self._device, log=lines.append)
        synchronize()
        note = " / ".join((*self.plan.lines()[2:], *lines))
        stage.record(f"{name}: load", time.monotonic() - started, "s", note=note)

    def plan_for(self, dropout: float) -> TrainingPlan:
        """Return the plan with another dropout."""
        settings = replace(self._settings, lora_dropout=dropout)
        steps = build_step_plan(self.data, settings, max_seq_len=self._length, num_devices=1)
        return make_plan(settings, self.data, steps, self._resources)

    def start(self) -> ReplicatedTrainer:
        """Return what takes the steps."""
        run = Run(
            settings=self._settings,
            step_plan=self.plan.steps,
            train_data=self.data,
            validation_data=self.data,
            rank=0,
            device=self._device,
            status=RankStatus(self._folder, rank=0, local_rank=0),
            generate_reply=lambda: None,
        )
        return ReplicatedTrainer(self.plan, run, self.model)

    def micro_batch(self, lengths: tuple[int, ...]) -> MicroBatch:
        """Return examples of these lengths."""
        pairs = zip(map(int, self.data.offsets), lengths, strict=False)
        return tuple((Span(start, start + min(length, self._length)),) for start, length in pairs)

    def _write_data(self) -> TokenDataset:
        generator = torch.Generator().manual_seed(0)

        def examples() -> Iterator[tuple[int, TokenizedExample]]:
            for line in range(1, 9):
                ids = torch.randint(3, 250, (self._length,), generator=generator).tolist()
                is_target = [PROMPT <= n < self._length - 1 for n in range(self._length)]
                yield line, TokenizedExample(ids, [*ids[1:], IGNORE_INDEX], is_target)

        path = self._folder.path / "tokens"
        write_tokens(examples(), path)
        return TokenDataset(path, name="random")


def leave() -> None:
    """End without the process group's goodbye, which takes seconds."""
    os._exit(0)
