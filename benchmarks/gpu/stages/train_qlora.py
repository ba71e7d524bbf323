"""Optimizer steps of a 7B model in 4-bit, whose weights are unpacked in every pass."""

from benchmarks.gpu.stage import Stage
from benchmarks.gpu.stages.train_speed import TrainSpeed, end


def run(stage: Stage) -> None:
    speed = TrainSpeed(stage, "qlora", keeps_dequantized=False)
    stage.section(speed.measure, "8,192 tokens", speed.long(4), 0.0)
    stage.section(speed.measure, "602 tokens", speed.short(), 0.05)
    end()
