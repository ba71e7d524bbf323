"""Products with float8 weights against float32, and optimizer steps of a 7B model beside them."""

from benchmarks.gpu.stage import Stage
from benchmarks.gpu.stages.train_speed import TrainSpeed, end
from src.model.core.float8 import MAX_ERROR, product_error


def run(stage: Stage) -> None:
    stage.section(check_products, stage)
    speed = TrainSpeed(stage, "lora", in_float8=True)
    stage.section(speed.measure, "8,192 tokens", speed.long(4), 0.0)
    stage.section(speed.measure, "8,192 tokens", speed.long(4), 0.05)
    stage.section(speed.measure, "602 tokens", speed.short(), 0.05)
    end()


def check_products(stage: Stage) -> None:
    for num_tokens in (1, 17, 2048):
        error = product_error(stage.device, num_tokens)
        name = f"float8 product and gradient, {num_tokens:,} tokens"
        stage.record(name, error, "relative", is_right=error < MAX_ERROR)
