"""Which adapter each row of a forward pass has."""

from collections.abc import Sequence
from typing import Protocol

import torch

from src.serving.lora.stacked import StackedLora


class LoraBatch(Protocol):
    """The adapters of the rows of one forward pass."""

    def add_(self, output: torch.Tensor, group: int, x: torch.Tensor) -> None:
        """Add the adapters' part to the output of a projection, in place."""


class SharedAdapter:
    """One adapter for all rows; its slot may be a tensor, so that a CUDA graph reads it anew."""

    def __init__(self, stacks: Sequence[StackedLora | None], slot: int | torch.Tensor) -> None:
        self._stacks, self._slot = stacks, slot

    def add_(self, output: torch.Tensor, group: int, x: torch.Tensor) -> None:
        """Add the adapter's part to the output of a projection, in place."""
        stack = self._stacks[group]
        if stack is not None:
            stack.add_shared_(output, x, self._slot)


class MixedAdapters:
    """Each row with its own adapter, or with none; is_other (rows, slots, 1) says which is not."""

    def __init__(self, stacks: Sequence[StackedLora | None], is_other: torch.Tensor) -> None:
        self._stacks, self._is_other = stacks, is_other

    def add_(self, output: torch.Tensor, group: int, x: torch.Tensor) -> None:
        """Add the adapters' parts to the output of a projection, in place."""
        stack = self._stacks[group]
        if stack is not None:
            stack.add_mixed_(output, x, self._is_other, self._is_other.shape[1])


def others_of(slots: Sequence[int | None], num_slots: int, device: torch.device) -> torch.Tensor:
    """Return which slots are not a row's own (rows, num_slots, 1)."""
    own = torch.tensor([-1 if slot is None else slot for slot in slots], device=device)
    return (own[:, None] != torch.arange(num_slots, device=device))[:, :, None]
