"""What takes the steps, with DeepSpeed's own engine on one process."""

import os
import socket
import subprocess
import sys

from src.training.worker import ALONE

ZERO_3 = """
from types import SimpleNamespace

import torch

from src.training.deepspeed_engine import build_engine, join_ranks
from src.training.trainers import Zero3Trainer


class Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x, loss_weights):
        loss = self.layer(x).square().sum()
        return Steep.apply(loss) if x.min() < 0 else loss


join_ranks(0)
config = {
    "train_batch_size": 1,
    "train_micro_batch_size_per_gpu": 1,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 3},
    "zero_allow_untested_optimizer": True,
}
model = Model()
engine = build_engine(model, list(model.parameters()), config, 1e-3)
weight = torch.ones(())
trainer = Zero3Trainer(
    engine, lambda sign, _: SimpleNamespace(x=sign * torch.ones(1, 4), loss_weights=weight)
)
print(trainer.step([1.0], None)[1], trainer.num_steps_done)
try:
    trainer.step([-1.0], None)
except FloatingPointError as error:
    print(error, trainer.num_steps_done)
"""


def test_a_gradient_that_is_not_finite_is_no_step_under_zero_3():
    """The loss is finite and its gradient is not: nothing is learned of it, and no step is told."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    environment = {**os.environ, **ALONE, "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ZERO_3], env=environment, capture_output=True, text=True, timeout=120
    )
    told = [line for line in done.stdout.splitlines() if not line.startswith("[")]
    assert told == ["1.0 1", "the gradient is not finite (inf) 1"], done.stderr
