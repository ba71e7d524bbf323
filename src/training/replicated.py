"""One optimizer step, where every rank holds the whole base model.

Each rank by itself sums loss and gradient over its micro-batches. Then the ranks add up loss and
weight, and DeepSpeed averages the gradients, clips them and runs AdamW, whose states the ranks
share (ZeRO-2). Until they add up no rank waits for another, so one that is out of memory can take
smaller pieces and more time: the sums stay what they are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from src.data.collate import Batch
from src.data.packing import Span, count_tokens, halve
from src.data.steps import MicroBatch
from src.data.token_file import TokenDataset
from src.errors import UserError
from src.graphs.capture import Capture, cuda_capture
from src.graphs.passes import PassGraphs
from src.model.adapter import FlatAdapter, copy_to_cpu, flatten
from src.model.loss import SummedLoss
from src.out_of_memory import is_out_of_memory, release_memory
from src.training.context import Run, check_finite
from src.training.deepspeed_engine import (
    STATE_PARTS,
    build_deepspeed_config,
    build_engine,
    build_loss_scaler,
    gather_parts,
    restore_parts,
    set_num_steps,
    sum_over_ranks,
)
from src.training.lora_model import LoraModel
from src.training.plan.plan import TrainingPlan


class ReplicatedTrainer:
    """The trainer of `context.Trainer` for a base model that each rank holds."""

    is_sharded = False

    def __init__(self, plan: TrainingPlan, run: Run, lora_model: LoraModel) -> None:
        self._run, self.module, self.num_steps_done = run, lora_model.loss, 0
        self._changing = Lock()
        """Held while the weights change: another thread may want to keep them."""
        self.scaler = build_loss_scaler(plan.resources.dtype)
        self._accumulator = Accumulator(
            lora_model.loss,
            [matrix for _, matrix in lora_model.adapter],
            make_batch=run.batch,
            recomputed_layers=plan.num_recomputed,
            max_tokens=plan.max_tokens,
            log=lambda line: print(f"rank {run.rank}: {line}", flush=True),
        )
        # Memory runs out now, if ever, and not in the middle of the run.
        longest = run.step_plan.longest_micro_batch(run.rank)
        self._accumulator.sum([longest], run.train_data)

        self._adapter = FlatAdapter(lora_model.adapter)
        config = build_deepspeed_config(plan, bucket_size=self._adapter.flat.numel())
        self.engine = build_engine(self._adapter, [self._adapter.flat], config)
        self._adapter.tie()  # DeepSpeed has moved the flat parameter
        if run.device.type == "cuda" and lora_model.loss.can_be_captured:
            self._accumulator.capture_with(cuda_capture())

    def step(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, float]:
        while True:
            self._accumulator.loss_scale.fill_(scale := self.scaler.loss_scale)
            sums = self._accumulator.sum(micro_batches, self._run.train_data)
            loss, weight, norm = sum_over_ranks(
                sums.loss, sums.weight, sums.gradient.norm(), device=self.engine.device
            )
            check_finite("loss", loss)
            self.scaler.update_scale(not math.isfinite(norm))
            if self.scaler.loss_scale >= scale:
                break
            self._run.log_overflow(self.num_steps_done + 1, scale, self.scaler.loss_scale)
        check_finite("gradient", norm)
        # DeepSpeed takes the mean over ranks; we want the sum by the weight of all of them.
        gradient = sums.gradient.mul_(dist.get_world_size() / (scale * max(weight, 1e-9)))
        with self._changing:
            self._apply(gradient)
            self.num_steps_done += 1
        return loss, weight

    def _apply(self, gradient: Tensor) -> None:
        """Let DeepSpeed average the ranks' gradients, clip the mean and run AdamW."""
        self.engine.backward(self.engine(gradient), scale_wrt_gas=False)
        self.engine.step()
        self._adapter.refresh()

    def sum_losses(
        self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset
    ) -> tuple[float, float]:
        sums = self._accumulator.sum(micro_batches, dataset)
        loss, weight = sum_over_ranks(sums.loss, sums.weight, device=self.engine.device)
        return loss, weight

    def gather_adapter(self) -> tuple[int, dict[str, Tensor]]:
        with self._changing:
            return self.num_steps_done, copy_to_cpu(self._adapter.matrices().items())

    def gather_state(self) -> dict[str, Tensor]:
        return {
            f"{part}.{name}": piece
            for part, flat in gather_parts(self._adapter.flat).items()
            for name, piece in self._adapter.split(flat).items()
        }

    def restore_state(self, state: dict[str, Tensor] | None, *, step: int, source: int) -> None:
        self._apply(torch.zeros_like(self._adapter.flat))  # makes the optimizer's state
        names = self._adapter.split(self._adapter.flat)
        parts = state and {
            part: flatten(state[f"{part}.{name}"] for name in names) for part in STATE_PARTS
        }
        restore_parts(self._adapter.flat, parts, source=source, engine=self.engine)
        self._adapter.refresh()
        set_num_steps(self.engine, step)
        self.num_steps_done = step


@dataclass
class Sums:
    """Sums over the target tokens of some micro-batches."""

    loss: Tensor | float
    weight: Tensor | float
    gradient: Tensor  # float32, flat; all zeros where gradients are off


class Accumulator:
    """Sums loss and gradient on this rank alone; where memory runs out, in smaller passes."""

    def __init__(
        self,
        loss: SummedLoss,
        parameters: Sequence[nn.Parameter],
        *,
        make_batch: Callable[[MicroBatch, TokenDataset], Batch],
        recomputed_layers: int,
        max_tokens: int | None = None,
        log: Callable[[str], None],
    ) -> None:
        self._loss, self._parameters = loss, list(parameters)
        self._make_batch, self._log = make_batch, log
        self._num_layers = loss.num_layers
        self.recomputed_layers = min(recomputed_layers, self._num_layers)
        self.max_tokens = max_tokens
        """Most tokens in one pass, where memory holds no more."""
        self.loss_scale = torch.ones((), device=self._parameters[0].device)
        """What loss, and so gradient, is multiplied with where it is differentiated."""
        self._graphs: PassGraphs | None = None

    def capture_with(self, capture: Capture) -> None:
        """Replay short passes; from now on the parameters must stay where they are."""
        self._graphs = PassGraphs(self._plain_pass, capture, self._log)

    def sum(self, micro_batches: Sequence[MicroBatch], dataset: TokenDataset) -> Sums:
        """Return the sums; raises UserError that names an example that memory does not hold."""
        sums = self._no_sums()
        in_turn = reversed(micro_batches)
        waiting = [[span for sequence in batch for span in sequence] for batch in in_turn]
        while waiting:
            spans = waiting.pop()
            limit = self.max_tokens
            if limit is not None and count_tokens(spans) > limit and len(spans) > 1:
                waiting += halve(spans)
            elif spans and not self._try_adding(spans, dataset, sums):
                self._make_smaller(spans, dataset)
                waiting.append(spans)
        return sums

    def _no_sums(self) -> Sums:
        size = sum(p.numel() for p in self._parameters) if torch.is_grad_enabled() else 0
        return Sums(0.0, 0.0, torch.zeros(size, device=self._parameters[0].device))

    def _try_adding(self, spans: Sequence[Span], dataset: TokenDataset, sums: Sums) -> bool:
        """Add the spans to the sums if memory allows; nothing is added otherwise."""
        batch = self._make_batch((tuple(spans),), dataset)
        try:
            loss, gradient = self._pass(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        sums.loss += loss
        sums.gradient += gradient
        sums.weight += batch.loss_weights.sum()
        return True

    def _pass(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return loss and flat gradient, 0 where gradients are off, of one pass."""
        if not torch.is_grad_enabled():
            return self._loss(**vars(batch)), torch.zeros(())
        if self._graphs and self._graphs.can_run(batch) and not self.recomputed_layers:
            return self._graphs.run(batch)
        return self._plain_pass(vars(batch))

    def _plain_pass(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        loss = self._loss(**inputs)
        # Some layers, such as experts, take no part in some passes.
        scaled = loss * self.loss_scale
        gradients = torch.autograd.grad(scaled, self._parameters, materialize_grads=True)
        return loss.detach(), flatten(gradients)

    def _make_smaller(self, spans: Sequence[Span], dataset: TokenDataset) -> None:
        """Take fewer tokens at a time; where one example is too much, recompute more layers."""
        release_memory()
        if self._graphs and self._graphs.is_on:
            return self._graphs.turn_off("out of memory beside them")
        num_tokens, num_layers = count_tokens(spans), self._num_layers
        if len(spans) > 1:
            self.max_tokens = max(num_tokens // 2, *map(len, spans))
            self._log(
                f"out of memory with {num_tokens:,} tokens at a time: from now on at most "
                f"{self.max_tokens:,}; batch and loss stay the same"
            )
        elif self.recomputed_layers < num_layers and torch.is_grad_enabled():
            more = -(-num_layers // 4)
            self.recomputed_layers = min(num_layers, self.recomputed_layers + more)
            self._loss.recompute(self.recomputed_layers)
            self._log(
                f"out of memory with {num_tokens:,} tokens at a time: from now on "
                f"{self.recomputed_layers} of {num_layers} layers are recomputed"
            )
        else:
            raise UserError(self._too_long(spans[0], dataset))

    def _too_long(self, span: Span, dataset: TokenDataset) -> str:
        """Return what to say of an example that is too long, with a length that was tried."""
        fits, fails = 0, len(span)
        while fails - fits > max(16, fails // 20):
            middle = (fits + fails) // 2
            part = Span(span.start, span.start + middle)
            does_fit = self._try_adding([part], dataset, self._no_sums())
            fits, fails = (middle, fails) if does_fit else (fits, middle)
            release_memory()
        recomputed = " and with every layer recomputed" if torch.is_grad_enabled() else ""
        return (
            f"{dataset.source_line(span.start)}: out of memory with this example of {len(span):,} "
            f"tokens, alone{recomputed}; expected at most about {fits:,} tokens, "
            "peft_method=qlora or a GPU with more memory"
        )
