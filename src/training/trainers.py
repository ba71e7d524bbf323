"""How a step is taken with DeepSpeed's engine: the base model whole on each rank, or shared."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist

from src.data.batch_plan import MicroBatch
from src.data.batches import Batch
from src.data.dataset import TokenDataset
from src.errors import UserError
from src.training.gradients import GradientSum, is_out_of_memory


class Trainer(Protocol):
    """Takes steps; the loss is a sum, and how the work is arranged changes nothing."""

    module: Any
    engine: Any

    def sum_losses(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """Return the summed loss and weight of the learned tokens over all ranks."""
        ...

    def step(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """Take one optimizer step and return the summed loss and weight over all ranks.

        Raises FloatingPointError with the loss, before the step, if that is not finite.
        """
        ...


class WholeModelTrainer:
    """Every rank holds the base model; DeepSpeed holds the adapter and shares out its states."""

    def __init__(self, engine: Any, gradient_sum: GradientSum, module: Any) -> None:
        self.engine, self.module, self._sum = engine, module, gradient_sum

    def sum_losses(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """See Trainer."""
        self._sum.clear()
        for micro_batch in micro_batches:
            self._sum.add(micro_batch, dataset)
        return _sum_over_ranks(self._sum.loss, self._sum.weight, self.engine.device)

    def step(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """See Trainer."""
        loss_sum, weight_sum = self.sum_losses(micro_batches, dataset)
        _check_finite(loss_sum)
        # DeepSpeed averages over ranks; the sum is divided by the weight of all ranks together.
        scale = dist.get_world_size() / max(weight_sum, 1e-9)
        parameters = list(self.engine.module.adapter)
        gradients = self._sum.gradients or [torch.zeros_like(p) for p in parameters]
        scalar = self.engine([gradient.mul_(scale) for gradient in gradients])
        self.engine.backward(scalar, scale_wrt_gas=False)
        self.engine.step()
        self._sum.clear()
        return loss_sum, weight_sum


class SharedModelTrainer:
    """ZeRO-3: each rank holds a share of the base model, so all of them run in step."""

    def __init__(
        self, engine: Any, make_batch: Callable[[MicroBatch, TokenDataset], Batch]
    ) -> None:
        self.engine = self.module = engine
        self._make_batch = make_batch

    def sum_losses(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """See Trainer."""
        loss_sum = weight_sum = torch.zeros((), device=self.engine.device)
        for micro_batch in micro_batches:
            batch = self._make_batch(micro_batch, dataset)
            loss_sum = loss_sum + self.engine(*vars(batch).values()).detach()
            weight_sum = weight_sum + batch.label_weights.sum()
        return _sum_over_ranks(loss_sum, weight_sum, self.engine.device)

    def step(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        """See Trainer."""
        batches = [self._make_batch(micro_batch, dataset) for micro_batch in micro_batches]
        local_weight = sum(float(batch.label_weights.sum()) for batch in batches)
        _, weight_sum = _sum_over_ranks(0.0, local_weight, self.engine.device)
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
                loss_sum, _ = _sum_over_ranks(local_loss, 0.0, self.engine.device)
                _check_finite(loss_sum)
            self.engine.step()
        return loss_sum, weight_sum


def _too_much(micro_batch: MicroBatch, dataset: TokenDataset) -> str:
    spans = [span for sequence in micro_batch for span in sequence]
    longest = max(spans, key=len)
    return (
        f"out of memory with a micro-batch of {sum(map(len, spans)):,} tokens, the longest example "
        f"of {len(longest):,} being {dataset.place(longest.start)}; expected a smaller "
        "micro_batch_size, shorter examples, peft_method=qlora or more GPUs"
    )


def _check_finite(loss: float) -> None:
    if not torch.isfinite(torch.tensor(loss)):
        raise FloatingPointError(str(loss))


def _sum_over_ranks(
    loss: torch.Tensor | float, weight: torch.Tensor | float, device: torch.device
) -> tuple[float, float]:
    sums = torch.stack([torch.as_tensor(x, device=device).double() for x in (loss, weight)])
    if dist.get_world_size() > 1:
        dist.all_reduce(sums)
    loss_sum, weight_sum = sums.tolist()
    return loss_sum, weight_sum
