"""Gated delta layers over the states of slots: for one token of many rows, or many of a few."""

from collections.abc import Sequence

import torch
from torch import Tensor

from src.model.core.blocks.gated_delta import GatedDelta, mix_on, mix_rows_
from src.serving.cache.states import States
from src.serving.model.attention import Span
from src.transfer import to_device


class DecodeStates:
    """One new token in each of the first rows."""

    def __init__(self, states: States, positions: Tensor) -> None:
        """`positions` are those of the rows, 0 of an idle one, whose slot may be in use."""
        self._states, self._is_idle = states, positions == 0

    def __call__(self, delta: GatedDelta, layer: int, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return what a layer gives for the rows (rows, heads * value size)."""
        tails, states = self._states.of_rows(layer, len(self._is_idle))
        qkv, decay, strength = inputs
        return mix_rows_(qkv, decay, strength, delta, tails, states, self._is_idle)


class PrefillStates:
    """The tokens of some spans, end to end; what begins at 0 begins with empty states."""

    def __init__(self, states: States, spans: Sequence[Span], device: torch.device) -> None:
        for span in spans:
            if span.start == 0:
                states.clear(span.slot)
        self._states = states
        self._sizes = [span.stop - span.start for span in spans]
        self._slots = to_device(torch.tensor([span.slot for span in spans]), device)

    def __call__(self, delta: GatedDelta, layer: int, inputs: tuple[Tensor, ...]) -> Tensor:
        """Return what a layer gives for the tokens (tokens, heads * value size)."""
        tails, states = self._states.read(layer, self._slots)
        parts = (x.split(self._sizes) for x in inputs)
        results = [
            mix_on(qkv, decay, strength, delta, tail, state)
            for qkv, decay, strength, tail, state in zip(*parts, tails, states, strict=True)
        ]
        outputs, new_tails, new_states = zip(*results, strict=True)
        self._states.write(layer, self._slots, torch.stack(new_tails), torch.stack(new_states))
        return torch.cat(outputs)
