"""The training loop: steps, epochs and validations."""

import math
import time

import torch

from src.data.packing import one_by_one
from src.data.steps import MicroBatch, split_micro_batches
from src.training.checkpoint.checkpointer import Checkpointer
from src.training.context import Run, Trainer, check_finite, step_seed
from src.training.deepspeed_engine import set_learning_rate
from src.training.learning_rate import learning_rate_multiplier
from src.training.results.metrics import Progress


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
        set_learning_rate(trainer.engine, learning_rate)
        micro_batches = split_micro_batches(step.sequences, run.step_plan.batch_sizes)[run.rank]
        torch.manual_seed(step_seed(settings.seed, step.number, run.rank))
        try:
            loss_sum, weight_sum = trainer.step(micro_batches)
        except FloatingPointError as error:
            raise FloatingPointError(f"step {step.number}: {error}") from None
        run.status.note_step(step.number)
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
        check_finite(f"validation loss after step {step}", loss or 0.0)
    with run.status.busy():
        reply = run.generate_reply()
    trainer.module.train()
    progress.validation(step=step, epoch=epoch, loss=loss, reply=reply)
    progress.resume_clock(time.monotonic() - started)


def _validation_share(run: Run) -> list[MicroBatch]:
    """Return this rank's micro-batches; ranks without any left get empty ones, to stay in step."""
    size, world_size = run.settings.validation_batch_size, run.step_plan.batch_sizes.world_size
    sequences = list(one_by_one(run.validation_data.offsets))
    groups = [tuple(sequences[i : i + size]) for i in range(0, len(sequences), size)]
    groups += [()] * (-len(groups) % world_size)
    return groups[run.rank :: world_size]
