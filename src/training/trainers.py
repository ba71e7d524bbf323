"""How a step is taken with DeepSpeed's engine: the base model whole on each rank, or shared."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Protocol

import torch
import torch.distributed as dist

from src.data.collate import Batch
from src.data.steps import MicroBatch
from src.data.token_file import TokenDataset
from src.errors import UserError
from src.training.gradients import GradientSum, is_out_of_memory


class Trainer(Protocol):
    """Takes steps; the loss is a sum, and how the work is arranged changes nothing."""

    module: Any
    engine: Any
    num_steps_done: int
    changing: Lock
    """Held while a step changes the weights."""

    def prime(self, micro_batch: MicroBatch, dataset: TokenDataset) -> None:
        """Take a step that changes nothing, so that the optimizer has states to put back."""
        ...

    def sum_losses(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """Return the summed loss and weight of the learned tokens over all ranks."""
        ...

    def step(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """Take one optimizer step and return the summed loss and weight over all ranks.

        Raises FloatingPointError on every rank, before the weights change, if the loss or the
        gradient of any is not finite.
        """
        ...


class ReplicatedTrainer:
    """Every rank holds the base model; DeepSpeed holds the adapter and shares out its states."""

    def __init__(self, engine: Any, gradient_sum: GradientSum, module: Any) -> None:
        self.engine, self.module, self._sum = engine, module, gradient_sum
        self.num_steps_done, self.changing = 0, Lock()

    def prime(self, micro_batch: MicroBatch, dataset: TokenDataset) -> None:
        """See Trainer."""
        with _frozen_rate(self.engine):
            self._take_step([torch.zeros_like(p) for p in self.engine.module.adapter])

    def sum_losses(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """See Trainer."""
        self._add_up(micro_batches, dataset)
        loss_sum, weight_sum = _sum_over_ranks([self._sum.loss, self._sum.weight], self.engine)
        return loss_sum, weight_sum

    def step(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """See Trainer."""
        self._add_up(micro_batches, dataset)
        parameters = list(self.engine.module.adapter)
        gradients = self._sum.gradients or [
            torch.zeros_like(p, dtype=torch.float32) for p in parameters
        ]
        square = torch.stack([gradient.norm() for gradient in gradients]).square().sum()
        loss_sum, weight_sum, squares = _sum_over_ranks(
            [self._sum.loss, self._sum.weight, square], self.engine
        )
        _check_finite("loss", loss_sum)
        _check_finite("gradient", squares)
        # DeepSpeed averages over ranks; the sum is divided by the weight of all ranks together.
        scale = dist.get_world_size() / max(weight_sum, 1e-9)
        gradients = [gradient.mul_(scale) for gradient in gradients]
        with self.changing:
            self._take_step(gradients)
            self.num_steps_done += 1
        self._sum.clear()
        return loss_sum, weight_sum

    def _add_up(self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset) -> None:
        self._sum.clear()
        for micro_batch in micro_batches:
            self._sum.add(micro_batch, dataset)

    def _take_step(self, gradients: Sequence[torch.Tensor]) -> None:
        self.engine.backward(self.engine(gradients), scale_wrt_gas=False)
        self.engine.step()


class Zero3Trainer:
    """ZeRO-3: each rank holds a share of the base model, so all of them run in step."""

    def __init__(
        self, engine: Any, make_batch: Callable[[MicroBatch, TokenDataset], Batch]
    ) -> None:
        self.engine = self.module = engine
        self._make_batch = make_batch
        self.num_steps_done, self.changing = 0, Lock()

    def prime(self, micro_batch: MicroBatch, dataset: TokenDataset) -> None:
        """See Trainer."""
        with _frozen_rate(self.engine):
            loss = self.engine(*vars(self._make_batch(micro_batch, dataset)).values())
            self.engine.set_gradient_accumulation_boundary(True)
            self.engine.backward(loss * 0.0, scale_wrt_gas=False)
            self.engine.step()

    def sum_losses(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """See Trainer."""
        losses = weights = torch.zeros((), device=self.engine.device)
        for micro_batch in micro_batches:
            batch = self._make_batch(micro_batch, dataset)
            losses = losses + self.engine(*vars(batch).values()).detach()
            weights = weights + batch.loss_weights.sum()
        loss_sum, weight_sum = _sum_over_ranks([losses, weights], self.engine)
        return loss_sum, weight_sum

    def step(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """See Trainer."""
        batches = [self._make_batch(micro_batch, dataset) for micro_batch in micro_batches]
        local_weight = sum(float(batch.loss_weights.sum()) for batch in batches)
        (weight_sum,) = _sum_over_ranks([local_weight], self.engine)
        scale = dist.get_world_size() / max(weight_sum, 1e-9)
        local_loss, loss_sum = torch.zeros((), device=self.engine.device), 0.0
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            self.engine.set_gradient_accumulation_boundary(is_last)
            try:
                loss = self.engine(*vars(batch).values())
                self.engine.backward(loss * scale, scale_wrt_gas=False)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # All ranks are in the same layer at any time: none can try again alone.
                raise UserError(_too_much(micro_batches[number], dataset)) from None
            local_loss += loss.detach()
            if is_last:
                (loss_sum,) = _sum_over_ranks([local_loss], self.engine)
                _check_finite("loss", loss_sum)
            with self.changing:
                self.engine.step()
        # DeepSpeed leaves such a step out, on all ranks together.
        _check_finite("gradient", float(self.engine.get_global_grad_norm()))
        self.num_steps_done += 1
        return loss_sum, weight_sum


@contextmanager
def _frozen_rate(engine: Any) -> Iterator[None]:
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    yield


def _too_much(micro_batch: MicroBatch, dataset: TokenDataset) -> str:
    spans = [span for sequence in micro_batch for span in sequence]
    longest = max(spans, key=len)
    return (
        f"out of memory with a micro-batch of {sum(map(len, spans)):,} tokens, the longest example "
        f"of {len(longest):,} being {dataset.source_line(longest.start)}; expected a smaller "
        "micro_batch_size, shorter examples, peft_method=qlora or more GPUs"
    )


def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(f"the {name} is not finite ({value})")


def _sum_over_ranks(values: Sequence[torch.Tensor | float], engine: Any) -> list[float]:
    sums = torch.stack([torch.as_tensor(x, device=engine.device).double() for x in values])
    if dist.get_world_size() > 1:
        dist.all_reduce(sums)
    return sums.tolist()
