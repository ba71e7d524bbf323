"""The training loop: steps, epochs and validations on DeepSpeed's engine."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from src.data.batch_plan import BatchPlan
from src.data.batches import (
    Batch,
    MicroBatch,
    collate,
    shuffle_epoch,
    split_micro_batches,
    split_steps,
)
from src.data.dataset import TokenDataset
from src.data.packing import Sequence as TokenSequence
from src.data.packing import count_tokens, one_by_one
from src.settings import TrainSettings
from src.training.progress import Progress
from src.training.schedule import learning_rate_multiplier
from src.training.trainers import Trainer


@dataclass(frozen=True)
class Run:
    """What the loop works on."""

    settings: TrainSettings
    plan: BatchPlan
    train_data: TokenDataset
    validation_data: TokenDataset
    sequences: Sequence[TokenSequence]
    rank: int
    device: torch.device
    sample: Callable[[], str | None]
    """Generates the reply to the validation prompt; all ranks call it together."""
    note_step: Callable[[int], None]
    """Tells the supervisor how far this rank has come."""

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.sequences) / self.plan.global_batch_size)

    @property
    def num_steps(self) -> int:
        num_steps = self.steps_per_epoch * self.settings.num_train_epochs
        return min(num_steps, self.settings.max_steps or num_steps)

    def batch(self, micro_batch: MicroBatch, dataset: TokenDataset) -> Batch:
        """Return the tensors of a micro-batch on this rank's device."""
        weight = self.settings.prompt_loss_weight
        return collate(micro_batch, dataset, prompt_loss_weight=weight).to(self.device)


@dataclass(frozen=True)
class Losses:
    """The last losses of a run."""

    train: float
    validation: float | None


def train(trainer: Trainer, run: Run, progress: Progress) -> Losses:
    """Run all steps and validations; every rank returns the same losses.

    Raises FloatingPointError when a loss or gradient is not finite.
    """
    settings, num_steps = run.settings, run.num_steps
    warmup_steps = math.ceil(settings.warmup_ratio * num_steps)
    step, train_loss = 0, math.nan
    validation_loss = validate(trainer, run, progress, step=0, epoch=0.0)
    progress.start()
    for epoch in range(settings.num_train_epochs):
        sequences = shuffle_epoch(list(run.sequences), seed=settings.seed, epoch=epoch)
        for number, global_batch in enumerate(split_steps(sequences, run.plan.global_batch_size)):
            learning_rate = settings.learning_rate * learning_rate_multiplier(
                step,
                num_steps=num_steps,
                warmup_steps=warmup_steps,
                schedule=settings.learning_rate_schedule,
            )
            for group in trainer.engine.optimizer.param_groups:
                group["lr"] = learning_rate
            micro_batches = split_micro_batches(global_batch, run.plan)[run.rank]
            step += 1
            try:
                loss_sum, weight_sum = trainer.step(micro_batches, run.train_data)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"the loss of step {step} is not finite ({error})"
                ) from None
            run.note_step(step)
            train_loss = loss_sum / max(weight_sum, 1e-9)
            progress.step(
                step=step,
                epoch=epoch + (number + 1) / run.steps_per_epoch,
                loss_sum=loss_sum,
                weight_sum=weight_sum,
                tokens=sum(map(count_tokens, global_batch)),
                learning_rate=learning_rate,
                gradient_norm=_gradient_norm(trainer, step),
            )
            if step == num_steps:
                break
        validation_loss = validate(
            trainer, run, progress, step=step, epoch=step / run.steps_per_epoch
        )
        if step == num_steps:
            break
    return Losses(train_loss, validation_loss)


def longest_micro_batch(run: Run) -> MicroBatch:
    """Return this rank's micro-batch with the most tokens, in any epoch's first steps or later."""
    steps = split_steps(
        shuffle_epoch(list(run.sequences), seed=run.settings.seed, epoch=0),
        run.plan.global_batch_size,
    )
    micro_batches = (m for step in steps for m in split_micro_batches(step, run.plan)[run.rank])
    return max(micro_batches, key=lambda batch: sum(map(count_tokens, batch)))


@torch.no_grad()
def validate(
    trainer: Trainer, run: Run, progress: Progress, *, step: int, epoch: float
) -> float | None:
    """Evaluate every validation example exactly once over all ranks; return the mean loss."""
    if not run.settings.run_validation:
        return None
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
    sample = run.sample()
    trainer.module.train()
    if loss is not None:
        progress.validation(step=step, epoch=epoch, loss=loss, sample=sample)
    elif sample is not None:
        progress.sample(step=step, epoch=epoch, sample=sample)
    progress.resume_clock(time.monotonic() - started)
    return loss


def _validation_share(run: Run) -> list[MicroBatch]:
    """Return this rank's micro-batches; ranks without any left get empty ones, to stay in step."""
    size, world_size = run.settings.validation_batch_size, run.plan.world_size
    sequences = one_by_one(run.validation_data.offsets)
    groups = [tuple(sequences[i : i + size]) for i in range(0, len(sequences), size)]
    groups += [()] * (-len(groups) % world_size)
    return groups[run.rank :: world_size]


def _gradient_norm(trainer: Trainer, step: int) -> float:
    norm = trainer.engine.get_global_grad_norm()
    norm = math.nan if norm is None else float(norm)
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient of step {step} is not finite ({norm})")
    return norm
