"""What the parts of a training share: the run itself, and what takes its steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from src.data.collate import Batch, collate
from src.data.steps import MicroBatch, StepPlan
from src.data.token_file import TokenDataset
from src.settings import TrainSettings
from src.training.supervise.heartbeat import RankStatus


@dataclass(frozen=True)
class Run:
    """What is trained, on what, by this rank."""

    settings: TrainSettings
    step_plan: StepPlan
    train_data: TokenDataset
    validation_data: TokenDataset
    rank: int
    device: torch.device
    status: RankStatus
    generate_reply: Callable[[], str | None]
    """Returns the reply to the validation prompt; all ranks call it together."""
    main_rank: int = 0
    """The rank that has the user's files: it alone prints, and writes what is kept."""

    @property
    def is_main(self) -> bool:
        return self.rank == self.main_rank

    def batch(self, micro_batch: MicroBatch, dataset: TokenDataset) -> Batch:
        """Return the tensors of a micro-batch on this rank's device."""
        self.status.note_work()
        weight = self.settings.prompt_loss_weight
        return collate(micro_batch, dataset, prompt_loss_weight=weight).to(self.device)

    def log_overflow(self, step: int, before: float, after: float) -> None:
        """Say that a gradient is beyond float16, and what the loss scale was and is."""
        if self.is_main:
            print(
                f"step {step}: the gradient overflows float16 with the loss scaled by "
                f"{before:,.0f}; the step is taken again with {after:,.0f}",
                flush=True,
            )


class Trainer(Protocol):
    """Takes optimizer steps; all ranks call its methods together.

    Losses are sums over target tokens, so how the work is shared out changes nothing.
    """

    engine: Any
    module: Any
    is_sharded: bool
    """Whether a rank alone cannot gather the adapter, because it holds only a share of it."""
    num_steps_done: int
    scaler: Any
    """DeepSpeed's loss scale, dynamic in float16, of a sum over target tokens or of a mean."""

    def step(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, float]:
        """Take one optimizer step; return loss and weight, summed over target tokens and ranks.

        Raises FloatingPointError on every rank, before the weights change, if the loss or the
        gradient of any is not finite.
        """
        ...

    def sum_losses(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """Return loss and weight, summed over target tokens and ranks."""
        ...

    def gather_adapter(self) -> tuple[int, dict[str, Tensor]]:
        """Return the number of steps done and the adapter after them, on the CPU.

        Raises FloatingPointError on every rank if a value is not finite.
        """
        ...

    def gather_state(self) -> dict[str, Tensor]:
        """Return the adapter in float32 and the optimizer's state of it, on the CPU.

        How many ranks there are leaves no trace in what is returned.
        """
        ...

    def restore_state(self, state: dict[str, Tensor] | None, *, step: int, source: int) -> None:
        """Go on after a step from what `gather_state` returned, as rank `source` has it."""
        ...


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout, so that a resumed run draws what it would have drawn."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def check_finite(name: str, value: float) -> None:
    """Raise FloatingPointError for a number that is infinite or none."""
    if not math.isfinite(value):
        raise FloatingPointError(f"the {name} is not finite ({value})")
