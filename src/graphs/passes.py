"""Forward and backward passes of few tokens as CUDA graphs: their launches take longer than they.

A pass is padded to a round number of tokens and of target tokens, so that few graphs serve all. The
padding is a span of its own, which no token of the batch sees and which has no weight in the loss.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from src.data.collate import Batch
from src.graphs.capture import Capture, Graph
from src.model.core.attention import Spans
from src.out_of_memory import is_out_of_memory, release_memory
from src.transfer import to_device

MAX_TOKENS = 4096
"""In longer passes the device is slower than the launches."""
TOKEN_STEP = 128
TARGET_STEPS = 4
"""The head is computed for so many quarters of a pass' tokens as its targets need."""
MIN_SPANS = 8
TOLERANCE = 0.02
"""Relative difference of the gradient's norm to that of plain calls, in bfloat16."""

Pass = Callable[[dict[str, Any]], tuple[Tensor, Tensor]]
"""Takes the inputs of the loss and returns it with the flat gradient."""


class PassGraphs:
    """Captures each size of pass at its first call, and proves it against plain calls."""

    def __init__(self, run: Pass, capture: Capture, log: Callable[[str], None]) -> None:
        self._run, self._capture, self._log = run, capture, log
        self._graphs: dict[tuple[int, int, int], tuple[_Inputs, Graph[tuple[Tensor, Tensor]]]] = {}
        self.is_on = True

    def can_run(self, batch: Batch) -> bool:
        """Return whether the pass is small enough."""
        return self.is_on and batch.input_ids.shape[1] <= MAX_TOKENS

    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return loss and flat gradient, which hold until the next call."""
        size = _size(batch)
        if size not in self._graphs:
            return self._try(batch, size)
        inputs, (replay, outputs) = self._graphs[size]
        inputs.fill(batch)
        replay()
        return outputs

    def turn_off(self, reason: str) -> None:
        """Give up the graphs and their memory."""
        self._log(f"passes run without CUDA graphs: {reason}")
        self.is_on = False
        self._graphs.clear()
        release_memory()

    def _try(self, batch: Batch, size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Run a batch plainly and by a new graph; where they differ, graphs are off.

        A gradient that is not finite is left to a later batch of this size to compare.
        """
        inputs = _Inputs(*size, batch.input_ids.device)
        inputs.fill(batch)
        arguments = inputs.arguments()
        is_cuda = batch.input_ids.is_cuda
        state = torch.cuda.get_rng_state() if is_cuda else torch.get_rng_state()
        plain = self._run(arguments)
        if not plain[1].isfinite().all():  # beyond float16: it proves nothing of a graph
            return plain
        try:
            replay, outputs = self._capture(lambda: self._run(arguments))
        except RuntimeError as error:
            reason = "out of memory" if is_out_of_memory(error) else str(error).splitlines()[0]
            self.turn_off(reason)
            return plain
        # With the same dropout.
        torch.cuda.set_rng_state(state) if is_cuda else torch.set_rng_state(state)
        replay()
        difference = (outputs[1] - plain[1]).float().norm()
        if not difference <= TOLERANCE * plain[1].float().norm():
            self.turn_off("their gradients differ from those of plain calls")
            return plain
        self._graphs[size] = inputs, (replay, outputs)
        return outputs


class _Inputs:
    """The memory that a graph reads its batch from."""

    def __init__(self, tokens: int, targets: int, spans: int, device: torch.device) -> None:
        def numbers(size: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self._ids, self._positions = numbers(tokens), numbers(tokens)
        self._targets, self._labels = numbers(targets), numbers(targets)
        self._weights = numbers(targets, torch.float32)
        self._offsets = numbers(spans + 1, torch.int32)

    def fill(self, batch: Batch) -> None:
        """Copy a batch, and padding behind it."""
        tokens, targets = batch.input_ids.shape[1], len(batch.labels)
        self._ids.zero_()[:tokens] = batch.input_ids[0]
        self._positions.zero_()[:tokens] = batch.position_ids[0]
        self._targets.zero_()[:targets] = batch.target_positions
        self._labels.zero_()[:targets] = batch.labels
        self._weights.zero_()[:targets] = batch.loss_weights
        offsets = torch.full(self._offsets.shape, len(self._ids), dtype=torch.int32)
        offsets[: len(batch.boundaries)] = torch.tensor(batch.boundaries)
        self._offsets.copy_(to_device(offsets, self._offsets.device))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `SummedLoss`."""
        return {
            "input_ids": self._ids[None],
            "position_ids": self._positions[None],
            "target_positions": self._targets,
            "labels": self._labels,
            "loss_weights": self._weights,
            "boundaries": Spans(None, self._offsets, len(self._ids)),
        }


def _size(batch: Batch) -> tuple[int, int, int]:
    """Return tokens, target tokens and spans of the padded pass."""
    tokens = _round_up(batch.input_ids.shape[1], TOKEN_STEP)
    targets = _round_up(max(1, len(batch.labels)), tokens // TARGET_STEPS)
    spans = max(MIN_SPANS, 1 << len(batch.boundaries).bit_length())
    return tokens, targets, spans


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
