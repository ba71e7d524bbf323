"""The training loop: steps, epochs and validations on DeepSpeed's engine."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

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


def train(model_engine: Any, run: Run, progress: Progress) -> Losses:
    """Run all steps and validations; every rank returns the same losses.

    Raises FloatingPointError when a loss or gradient is not finite.
    """
    settings, num_steps = run.settings, run.num_steps
    warmup_steps = math.ceil(settings.warmup_ratio * num_steps)
    step, train_loss = 0, math.nan
    validation_loss = validate(model_engine, run, progress, step=0, epoch=0.0)
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
            for group in model_engine.optimizer.param_groups:
                group["lr"] = learning_rate
            loss_sum, weight_sum = train_step(model_engine, run, global_batch, step=step + 1)
            step += 1
            run.note_step(step)
            train_loss = loss_sum / weight_sum
            progress.step(
                step=step,
                epoch=epoch + (number + 1) / run.steps_per_epoch,
                loss_sum=loss_sum,
                weight_sum=weight_sum,
                tokens=sum(map(count_tokens, global_batch)),
                learning_rate=learning_rate,
                gradient_norm=_gradient_norm(model_engine, step),
            )
            if step == num_steps:
                break
        validation_loss = validate(
            model_engine, run, progress, step=step, epoch=step / run.steps_per_epoch
        )
        if step == num_steps:
            break
    return Losses(train_loss, validation_loss)


def train_step(
    model_engine: Any, run: Run, global_batch: list[TokenSequence], *, step: int
) -> tuple[float, float]:
    """Take one optimizer step; return the summed loss and weight of its learned tokens.

    The loss is the sum over the learned tokens of all ranks and micro-batches divided by their
    number, so how the work is arranged changes nothing.
    """
    micro_batches = [
        run.batch(micro_batch, run.train_data)
        for micro_batch in split_micro_batches(global_batch, run.plan)[run.rank]
    ]
    weight_sum = _sum_over_ranks(sum(batch.label_weights.sum() for batch in micro_batches))
    loss_sum = torch.zeros((), device=run.device)
    for number, batch in enumerate(micro_batches):
        summed_loss = forward(model_engine, batch)
        is_last = number == len(micro_batches) - 1
        model_engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over ranks; the loss is already divided by the weight of all ranks.
        share = summed_loss * (run.plan.world_size / max(float(weight_sum), 1e-9))
        model_engine.backward(share, scale_wrt_gas=False)
        loss_sum += summed_loss.detach()
        if is_last:
            loss_sum = _sum_over_ranks(loss_sum)
            if not torch.isfinite(loss_sum):
                raise FloatingPointError(f"the loss of step {step} is not finite ({loss_sum})")
        model_engine.step()
    return float(loss_sum), max(float(weight_sum), 1e-9)


def forward(model: Any, batch: Batch) -> torch.Tensor:
    """Return the summed loss of one micro-batch."""
    return model(
        batch.input_ids,
        batch.position_ids,
        batch.labels,
        batch.label_weights,
        batch.boundaries,
    )


def try_longest(model: Any, run: Run) -> None:
    """Run the longest micro-batch once, for nothing: memory runs out now or never."""
    micro_batches = [
        micro_batch
        for step in split_steps(
            shuffle_epoch(list(run.sequences), seed=run.settings.seed, epoch=0),
            run.plan.global_batch_size,
        )
        for micro_batch in split_micro_batches(step, run.plan)[run.rank]
    ]
    longest = max(micro_batches, key=lambda batch: sum(map(count_tokens, batch)))
    forward(model, run.batch(longest, run.train_data)).backward()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def validate(
    model_engine: Any, run: Run, progress: Progress, *, step: int, epoch: float
) -> float | None:
    """Evaluate every validation example exactly once over all ranks; return the mean loss."""
    if not run.settings.run_validation:
        return None
    started = time.monotonic()
    model_engine.eval()
    loss: float | None = None
    if len(run.validation_data):
        sums = torch.zeros(2, dtype=torch.float64)
        for micro_batch in _validation_share(run):
            batch = run.batch(micro_batch, run.validation_data)
            sums[0] += forward(model_engine, batch).double().cpu()
            sums[1] += batch.label_weights.sum().double().cpu()
        loss_sum, weight_sum = _sum_over_ranks(sums.to(run.device)).tolist()
        loss = loss_sum / weight_sum if weight_sum else None
        if loss is not None and not math.isfinite(loss):
            raise FloatingPointError(
                f"the validation loss after step {step} is not finite ({loss})"
            )
    sample = run.sample()
    model_engine.train()
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


def _gradient_norm(model_engine: Any, step: int) -> float:
    norm = model_engine.get_global_grad_norm()
    norm = math.nan if norm is None else float(norm)
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient of step {step} is not finite ({norm})")
    return norm


def _sum_over_ranks(value: Any) -> torch.Tensor:
    total = torch.as_tensor(value)
    if dist.is_initialized() and dist.get_world_size() > 1:
        total = total.clone()
        dist.all_reduce(total)
    return total
