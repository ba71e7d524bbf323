"""One optimizer step, where each rank holds a share of the base model (ZeRO-3).

All ranks run each layer together, as each gathers its weights from all of them.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from src.data.steps import MicroBatch
from src.data.token_file import TokenDataset
from src.errors import UserError
from src.model.adapter import copy_to_cpu
from src.out_of_memory import is_out_of_memory
from src.training.context import Run, check_finite
from src.training.deepspeed_engine import (
    STATE_PARTS,
    build_deepspeed_config,
    build_engine,
    gather_parts,
    gathered,
    restore_parts,
    set_num_steps,
    sum_over_ranks,
)
from src.training.lora_model import LoraModel
from src.training.plan.plan import TrainingPlan


class Zero3Trainer:
    """The trainer of `context.Trainer` for a base model that the ranks share."""

    is_sharded = True

    def __init__(self, plan: TrainingPlan, run: Run, lora_model: LoraModel) -> None:
        self._run, self._adapter, self.num_steps_done = run, lora_model.adapter, 0
        parameters = [matrix for _, matrix in self._adapter]
        self.engine = build_engine(lora_model.loss, parameters, build_deepspeed_config(plan))
        self.module = self.engine
        self.scaler = self.engine.optimizer.loss_scaler
        self.scaler.raise_error_at_min_scale = False

    def step(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, float]:
        while True:
            scale = self.scaler.loss_scale
            loss, weight = self._try_step(micro_batches)
            if self.scaler.loss_scale >= scale:
                break
            self._run.log_overflow(self.num_steps_done + 1, scale, self.scaler.loss_scale)
        # DeepSpeed leaves such a step out, on all ranks together.
        check_finite("gradient", float(self.engine.get_global_grad_norm()))
        self.num_steps_done += 1
        return loss, weight

    def _try_step(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, float]:
        batches = [self._run.batch(batch, self._run.train_data) for batch in micro_batches]
        local_weight = sum(batch.loss_weights.sum() for batch in batches)
        (weight,) = sum_over_ranks(local_weight, device=self.engine.device)
        # DeepSpeed takes the mean over ranks; we want the sum by the weight of all of them.
        scale = dist.get_world_size() / max(weight, 1e-9)
        local_loss = torch.zeros((), device=self.engine.device)
        for number, (micro_batch, batch) in enumerate(zip(micro_batches, batches, strict=True)):
            if number > 0:
                self.engine.step()  # so far it only counts the micro-batches
            self.engine.set_gradient_accumulation_boundary(number == len(batches) - 1)
            try:
                loss = self.engine(**vars(batch))
                self.engine.backward(loss * scale, scale_wrt_gas=False)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # All ranks are in the same layer at any time: none can try again alone.
                raise UserError(_too_much(micro_batch, self._run.train_data)) from None
            local_loss += loss.detach()
        (loss_sum,) = sum_over_ranks(local_loss, device=self.engine.device)
        check_finite("loss", loss_sum)
        self.engine.step()
        return loss_sum, weight

    def sum_losses(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        losses = weights = torch.zeros((), device=self.engine.device)
        for micro_batch in micro_batches:
            batch = self._run.batch(micro_batch, dataset)
            losses = losses + self.engine(**vars(batch)).detach()
            weights = weights + batch.loss_weights.sum()
        loss, weight = sum_over_ranks(losses, weights, device=self.engine.device)
        return loss, weight

    def gather_adapter(self) -> tuple[int, dict[str, Tensor]]:
        with gathered([matrix for _, matrix in self._adapter]):
            return self.num_steps_done, copy_to_cpu(self._adapter)

    def gather_state(self) -> dict[str, Tensor]:
        return {
            f"{part}.{name}": tensor
            for name, matrix in self._adapter
            for part, tensor in gather_parts(matrix).items()
        }

    def restore_state(self, state: dict[str, Tensor] | None, *, step: int, source: int) -> None:
        # A step with nothing to learn makes the optimizer's state.
        self.engine.set_gradient_accumulation_boundary(True)
        loss = self.engine(**vars(self._run.batch((), self._run.train_data)))
        self.engine.backward(loss, scale_wrt_gas=False)
        self.engine.step()
        for name, matrix in self._adapter:
            parts = state and {part: state[f"{part}.{name}"] for part in STATE_PARTS}
            restore_parts(matrix, parts, source=source, engine=self.engine)
        set_num_steps(self.engine, step)
        self.num_steps_done = step


def _too_much(micro_batch: MicroBatch, dataset: TokenDataset) -> str:
    spans = [span for sequence in micro_batch for span in sequence]
    longest = max(spans, key=len)
    return (
        f"out of memory with a micro-batch of {sum(map(len, spans)):,} tokens, the longest example "
        f"of {len(longest):,} being {dataset.source_line(longest.start)}; expected a smaller "
        "micro_batch_size, shorter examples, peft_method=qlora or more GPUs"
    )
