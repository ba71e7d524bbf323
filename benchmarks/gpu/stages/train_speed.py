"""Optimizer steps of a 7B model: tokens a second and memory, passes as CUDA graphs and plain."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.gpu.models import large_model
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import seconds_of, synchronize
from benchmarks.shapes import flops_per_token
from src.data.packing import Span
from src.data.prepare import build_step_plan
from src.data.steps import MicroBatch
from src.data.token_file import TokenDataset, write_tokens
from src.data.tokenization import IGNORE_INDEX, TokenizedExample
from src.environment import TrainEnvironment
from src.graphs.capture import cuda_capture
from src.model.precision import dtype_name
from src.model.shape import read_shape
from src.settings import TrainSettings
from src.training.context import Run
from src.training.deepspeed_engine import join_ranks
from src.training.lora_model import load_lora_model
from src.training.plan.plan import TrainingPlan, make_plan
from src.training.plan.resources import measure_resources
from src.training.replicated import ReplicatedTrainer
from src.training.supervise.heartbeat import RankStatus
from src.training.supervise.run_folder import RunFolder

LONG = 2048
SHORT = (150, 120, 175, 157)
"""Tokens of the examples of a step with the default settings."""
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


def run(stage: Stage) -> None:
    speed = TrainSpeed(stage, "lora")
    stage.section(speed.measure, "8,192 tokens", speed.long(4), 0.0)
    stage.section(speed.measure, "8,192 tokens", speed.long(4), 0.05)
    for uses_graphs in (True, False):
        stage.section(speed.measure, "2,048 tokens", speed.long(1), 0.0, uses_graphs)
        stage.section(speed.measure, "602 tokens", speed.short(), 0.0, uses_graphs)
        stage.section(speed.measure, "602 tokens", speed.short(), 0.05, uses_graphs)
    end()


def end() -> None:
    """End without the process group's goodbye, which takes seconds."""
    os._exit(0)


class TrainSpeed:
    """The project's trainer on one device, with random data."""

    def __init__(
        self,
        stage: Stage,
        method: str,
        *,
        keeps_dequantized: bool | None = None,
        in_float8: bool = False,
    ) -> None:
        os.environ.update(ONE_RANK)
        self._stage, self._folder = stage, large_model(stage)
        self._method = f"{method} in float8" if in_float8 else method
        self._length = 32 if stage.is_tiny else LONG
        self._data = self._write_data()
        settings = TrainSettings(
            base_model=str(self._folder),
            base_model_dir=str(self._folder),
            train_data="random",
            train_data_name="random",
            run_validation=False,
            peft_method=method,
            environment=TrainEnvironment(dtype=dtype_name(stage.dtype), in_float8=in_float8),
        )
        self._device = join_ranks(0)
        steps = build_step_plan(self._data, settings, max_seq_len=self._length, num_devices=1)
        resources = measure_resources(self._device, settings.environment)
        self._plan = make_plan(settings, self._data, steps, resources)
        if keeps_dequantized is not None and self._plan.work:
            work = replace(self._plan.work, keeps_dequantized=keeps_dequantized)
            self._plan = replace(self._plan, work=work)
        self._trainer = self._start(self._plan)
        stage.record(f"{self._method}: plan", " / ".join(self._plan.lines()[2:]))

    def _write_data(self) -> TokenDataset:
        generator = torch.Generator().manual_seed(0)

        def examples() -> Iterator[tuple[int, TokenizedExample]]:
            for line in range(1, 9):
                ids = torch.randint(3, 250, (self._length,), generator=generator).tolist()
                is_target = [PROMPT <= n < self._length - 1 for n in range(self._length)]
                yield line, TokenizedExample(ids, [*ids[1:], IGNORE_INDEX], is_target)

        path = self._stage.work / f"tokens-{self._stage.name}"
        write_tokens(examples(), path)
        return TokenDataset(path, name="random")

    def _start(self, plan: TrainingPlan) -> ReplicatedTrainer:
        started = time.monotonic()
        self._model = load_lora_model(plan, self._device, log=print)
        synchronize()
        name = f"{self._method}: load the base model"
        self._stage.record(name, time.monotonic() - started, "s")
        folder = RunFolder(self._stage.work / f"run-{self._stage.name}")
        folder.path.mkdir()
        run_ = Run(
            settings=plan.settings,
            step_plan=plan.steps,
            train_data=self._data,
            validation_data=self._data,
            rank=0,
            device=self._device,
            status=RankStatus(folder, rank=0, local_rank=0),
            generate_reply=lambda: None,
        )
        return ReplicatedTrainer(plan, run_, self._model)

    def long(self, count: int) -> MicroBatch:
        """Return a micro-batch of so many long examples."""
        starts = map(int, self._data.offsets[:count])
        return tuple((Span(start, start + self._length),) for start in starts)

    def short(self) -> MicroBatch:
        """Return the micro-batch of the default settings on short examples."""
        pairs = zip(map(int, self._data.offsets), SHORT, strict=False)
        return tuple((Span(start, start + length),) for start, length in pairs)

    def measure(
        self, name: str, micro_batch: MicroBatch, dropout: float, uses_graphs: bool = True
    ) -> None:
        """Record the speed of steps, and the memory where the plan is for this micro-batch."""
        self._prepare(dropout, uses_graphs=uses_graphs)
        losses = []

        def step() -> None:
            torch.manual_seed(len(losses))
            loss, weight = self._trainer.step([micro_batch])
            losses.append(loss / weight)

        seconds_of(step, repeat=2)
        seconds = seconds_of(step, repeat=4)
        lengths = [len(span) for sequence in micro_batch for span in sequence]
        tokens = sum(lengths)
        shape = read_shape(self._folder)
        assert shape is not None
        mean_length = sum(n * n for n in lengths) / tokens
        flops = flops_per_token(shape, lora_rank=8, max_seq_len=mean_length)
        graphs = self._trainer._accumulator._graphs
        how = "graph" if graphs and graphs._graphs else "plain"
        self._stage.record(
            f"{self._method}, {name}, dropout {dropout:g}, {how}",
            tokens / seconds,
            "tokens/s",
            is_right=max(losses) < 100,
            note=f"{1e3 * seconds:.1f} ms a step; "
            f"{self._stage.share(tokens / seconds * flops, 'matmul')}; "
            f"loss {losses[0]:.3f} to {losses[-1]:.3f}",
        )
        if micro_batch == self.long(4):
            self._record_memory(f"{self._method}, {name}, dropout {dropout:g}: measured memory")

    def _prepare(self, dropout: float, *, uses_graphs: bool) -> None:
        for module in self._model.model.modules():
            for layer in getattr(module, "lora_dropout", {}).values():
                layer.p = dropout
        # Graphs hold the dropout that they were captured with, and go with their memory.
        accumulator = self._trainer._accumulator
        accumulator._graphs = None
        self._stage.release_memory()
        if self._device.type == "cuda" and uses_graphs:
            accumulator.capture_with(cuda_capture())
        self._stage.peak_gigabytes()

    def _record_memory(self, name: str) -> None:
        measured, planned = self._stage.peak_gigabytes(), self._plan.peak
        if planned and not self._stage.is_tiny:
            note = f"{planned / 1e9:.2f} GB planned, with the dropout of the settings"
            self._stage.record(name, measured, "GB", note=note)
