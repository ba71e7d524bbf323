"""Optimizer steps of a 7B model: tokens a second and memory, passes as CUDA graphs and plain."""

from itertools import product
from typing import Any

import torch

from benchmarks.gpu.models import (
    DROPOUTS,
    LENGTHS,
    LONG,
    MIDDLE,
    SHORT,
    large_model,
    training_share,
)
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.timing import seconds_of
from benchmarks.gpu.training import Training, leave
from src.graphs.capture import cuda_capture

TINY = 32
"""Tokens of the longest example there."""
WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "eager": {"variables": {"COMPILE": "0"}},
    "float8": {"variables": {"BASE_WEIGHTS": "fp8"}},
    "qlora": {"peft_method": "qlora", "keeps_dequantized": False},
}
"""The default, and what differs from it; the name of a stage ends in one."""


def run(stage: Stage) -> None:
    way = stage.variant or "lora"
    if way == "float8" and (reason := stage.float8_refused):
        return stage.record("float8", "left out", note=reason)
    speed = TrainSpeed(stage, way)
    for name, dropout in product(LENGTHS, DROPOUTS):
        stage.section(speed.measure, name, dropout)
    if way == "lora":
        for name in (MIDDLE, SHORT):
            stage.section(speed.measure, name, DROPOUTS[-1], "without graphs")
    leave()


class TrainSpeed:
    """The project's trainer on one device."""

    def __init__(self, stage: Stage, way: str) -> None:
        self._stage, self._way = stage, way
        length = TINY if stage.is_tiny else max(LENGTHS[LONG])
        self._training = Training(stage, large_model(stage), way, length=length, **WAYS[way])
        self._trainer = self._training.start()

    def measure(self, name: str, dropout: float, graphs: str = "") -> None:
        """Record the speed of steps, and the memory where the plan is for this micro-batch."""
        self._prepare(dropout, uses_graphs=not graphs)
        micro_batch, losses = self._training.micro_batch(LENGTHS[name]), []

        def step() -> None:
            torch.manual_seed(len(losses))
            loss, weight = self._trainer.step([micro_batch])
            losses.append(loss / weight)

        first = seconds_of(step)
        seconds_of(step)
        seconds = seconds_of(step, repeat=4)
        lengths = [len(span) for sequence in micro_batch for span in sequence]
        rate = sum(lengths) / seconds
        self._stage.record(
            f"{' '.join((self._way, graphs)).strip()}, {name}, dropout {dropout:g}",
            rate,
            "tokens/s",
            is_right=max(losses) < 100,
            share=training_share(self._stage, rate, lengths),
            note=f"{1e3 * seconds:.1f} ms a step, the first {first:.1f} s; "
            f"{self._num_graphs()} graphs; loss {losses[0]:.3f} to {losses[-1]:.3f}",
        )
        if name == LONG:
            self._record_memory(dropout)

    def _num_graphs(self) -> int:
        graphs = self._trainer._accumulator._graphs
        return len(graphs._graphs) if graphs else 0

    def _prepare(self, dropout: float, *, uses_graphs: bool) -> None:
        for module in self._training.model.model.modules():
            for layer in getattr(module, "lora_dropout", {}).values():
                layer.p = dropout
        # Graphs hold the dropout that they were captured with, and go with their memory.
        accumulator = self._trainer._accumulator
        accumulator._graphs = None
        self._stage.release_memory()
        if self._stage.device.type == "cuda" and uses_graphs:
            accumulator.capture_with(cuda_capture())
        self._stage.peak_gigabytes()

    def _record_memory(self, dropout: float) -> None:
        measured = self._stage.peak_gigabytes()
        # Weights unpacked in every pass are no choice of this plan.
        is_own = self._way == "qlora"
        plan = self._training.plan if is_own else self._training.plan_for(dropout)
        if plan.peak and measured:
            self._stage.record(
                f"{self._way}: measured peak of memory, dropout {dropout:g}",
                measured,
                "GB",
                note=f"{plan.peak / 1e9:.2f} GB planned, {plan.peak / 1e9 / measured - 1:+.1%}",
            )
