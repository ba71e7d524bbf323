"""Steps of ZeRO-3, with DeepSpeed's own engine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from src.data.steps import BatchSizes
from src.training.deepspeed_engine import join_ranks, set_learning_rate
from src.training.zero3 import Zero3Trainer
from tests.training.ranks import call_in_ranks


class Steep(torch.autograd.Function):
    """The identity, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * float("inf")


class SquareLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor, loss_weights: Tensor) -> Tensor:
        loss = self.layer(x).square().sum()
        return Steep.apply(loss) if x.min() < 0 else loss  # type: ignore[return-value]


def take_steps() -> None:
    join_ranks(torch.device("cpu"))
    loss = SquareLoss()
    plan: Any = SimpleNamespace(
        steps=SimpleNamespace(batch_sizes=BatchSizes(1, 1, 1)),
        resources=SimpleNamespace(on_gpus=False, dtype=torch.float32),
        zero_stage=3,
    )
    run: Any = SimpleNamespace(
        train_data=None,
        batch=lambda sign, _: SimpleNamespace(
            x=sign * torch.ones(1, 4), loss_weights=torch.ones(1)
        ),
    )
    lora_model: Any = SimpleNamespace(loss=loss, adapter=list(loss.named_parameters()))
    trainer = Zero3Trainer(plan, run, lora_model)
    set_learning_rate(trainer.engine, 1e-3)
    positive: Any = [1.0]
    print("weight", trainer.step(positive)[1], "steps", trainer.num_steps_done)
    try:
        trainer.step([-p for p in positive])
    except FloatingPointError as error:
        print(error, "steps", trainer.num_steps_done)


def test_a_gradient_that_is_not_finite_is_no_step_under_zero_3(tmp_path: Path):
    """The loss is finite and its gradient is not: nothing is learned of it, no step is counted."""
    call_in_ranks(take_steps, log=tmp_path / "log")
    logged = (tmp_path / "log").read_text()
    assert "weight 1.0 steps 1\n" in logged
    assert "the gradient is not finite (inf) steps 1\n" in logged
