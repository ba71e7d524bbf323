"""The training loop: steps, epochs and validations on DeepSpeed's engine."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from src.data.collate import Batch, collate
from src.data.packing import one_by_one
from src.data.steps import MicroBatch, StepPlan, split_micro_batches
from src.data.token_file import TokenDataset
from src.settings import TrainSettings
from src.training.checkpoint.checkpointer import Checkpointer, step_seed
from src.training.learning_rate import learning_rate_multiplier
from src.training.results.metrics import Progress
from src.training.trainers import Trainer


@dataclass(frozen=True)
class Run:
    """What the loop works on."""

    settings: TrainSettings
    step_plan: StepPlan
    train_data: TokenDataset
    validation_data: TokenDataset
    rank: int
    device: torch.device
    sample: Callable[[], str | None]
    """Generates the reply to the validation prompt; all ranks call it together."""
    note_step: Callable[[int], None]
    """Tells the supervisor how far this rank has come."""
    note_work: Callable[[], None]
    """Tells the supervisor that this rank is not stuck."""
    busy: Callable[[], AbstractContextManager[None]]
    """Tells so all the while."""

    def batch(self, micro_batch: MicroBatch, dataset: TokenDataset) -> Batch:
        """Return the tensors of a micro-batch on this rank's device."""
        self.note_work()
        weight = self.settings.prompt_loss_weight
        return collate(micro_batch, dataset, prompt_loss_weight=weight).to(self.device)


def train(
    trainer: Trainer, run: Run, progress: Progress, checkpointer: Checkpointer, *, done: int = 0
) -> None:
    """Run the steps after the `done` first ones, and validations; `progress` has the losses.

    Raises FloatingPointError when a loss or gradient is not finite, StoppedEarly when the
    supervisor asked for an end.
    """
    settings, num_steps = run.settings, run.step_plan.num_steps
    warmup_steps = math.ceil(settings.warmup_ratio * num_steps)
    if done == 0:
        validate(trainer, run, progress, step=0, epoch=0.0)
    progress.start(done)
    for step in run.step_plan:
        if step.number <= done:
            continue
        learning_rate = settings.learning_rate * learning_rate_multiplier(
            step.number - 1,
            num_steps=num_steps,
            warmup_steps=warmup_steps,
            schedule=settings.learning_rate_schedule,
        )
        for group in trainer.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        micro_batches = split_micro_batches(step.sequences, run.step_plan.batch_sizes)[run.rank]
        torch.manual_seed(step_seed(settings.seed, step.number, run.rank))
        try:
            loss_sum, weight_sum = trainer.step(micro_batches, run.train_data)
        except FloatingPointError as error:
            raise FloatingPointError(f"step {step.number}: {error}") from None
        run.note_step(step.number)
        progress.step(
            step=step.number,
            epoch=step.epoch,
            loss_sum=loss_sum,
            weight_sum=weight_sum,
            tokens=step.num_tokens,
            learning_rate=learning_rate,
            gradient_norm=float(trainer.engine.get_global_grad_norm()),
        )
        if step.ends_epoch or step.number == num_steps:
            validate(trainer, run, progress, step=step.number, epoch=step.epoch)
        checkpointer.after_step(step.number, progress)


@torch.no_grad()
def validate(trainer: Trainer, run: Run, progress: Progress, *, step: int, epoch: float) -> None:
    """Evaluate every validation example exactly once over all ranks, and record the mean loss."""
    if not run.settings.run_validation:
        return
    started = time.monotonic()
    trainer.module.eval()
    loss: float | None = None
    if len(run.validation_data):
        loss_sum, weight_sum = trainer.sum_losses(_validation_share(run), run.validation_data)
        loss = loss_sum / weight_sum if weight_sum else None
        if loss is not None and not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation loss after step {step} is not finite ({loss})"
            )
    with run.busy():
        sample = run.sample()
    trainer.module.train()
    if loss is not None:
        progress.validation(step=step, epoch=epoch, loss=loss, sample=sample)
    elif sample is not None:
        progress.sample(step=step, epoch=epoch, sample=sample)
    progress.resume_clock(time.monotonic() - started)


def _validation_share(run: Run) -> list[MicroBatch]:
    """Return this rank's micro-batches; ranks without any left get empty ones, to stay in step."""
    size, world_size = run.settings.validation_batch_size, run.step_plan.batch_sizes.world_size
    sequences = list(one_by_one(run.validation_data.offsets))
    groups = [tuple(sequences[i : i + size]) for i in range(0, len(sequences), size)]
    groups += [()] * (-len(groups) % world_size)
    return groups[run.rank :: world_size]
