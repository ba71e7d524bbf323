"""The adapters of a batch: the LoRA matrices of all slots, stacked into two for each projection."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from src.serving.lora.weights import LoadedModule
from src.serving.model.layers import Projection
from src.serving.model.lazy_zeros import lazy_zeros


class StackedLora:
    """Slot after slot, and in a slot one block of `rank` rows for each fused layer.

    B is block-diagonal within a slot: a layer's block reaches that layer's outputs alone.
    """

    def __init__(
        self, projection: Projection, *, num_slots: int, rank: int, like: torch.Tensor
    ) -> None:
        self.names, self.num_slots, self.rank = projection.names, num_slots, rank
        self._ends = torch.tensor(projection.out_features).cumsum(0).tolist()
        self.rows = len(self.names) * rank
        num_rows, kind = num_slots * self.rows, (like.dtype, like.device)
        self.a = lazy_zeros((num_rows, projection.in_features), *kind)
        self.b = lazy_zeros((num_rows, sum(projection.out_features)), *kind)

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def write(self, slot: int, modules: Mapping[str, LoadedModule]) -> None:
        """Give a slot the updates of an adapter; layers that it leaves out get none."""
        start = slot * self.rows
        self.a[start : start + self.rows].zero_()
        self.b[start : start + self.rows].zero_()
        begin = 0
        for number, (name, end) in enumerate(zip(self.names, self._ends, strict=True)):
            if name in modules:
                module = modules[name]
                first = start + number * self.rank
                rank = len(module.lora_A)
                self.a[first : first + rank].copy_(module.lora_A)
                self.b[first : first + rank, begin:end].copy_(module.lora_B.t())
            begin = end

    def take(self, other: "StackedLora") -> None:
        """Copy what a stack of other slots and another rank holds, as far as there is room."""
        slots, rank = min(self.num_slots, other.num_slots), min(self.rank, other.rank)
        for mine, theirs in ((self.a, other.a), (self.b, other.b)):
            to, of = (
                matrix.view(stack.num_slots, len(self.names), stack.rank, -1)
                for matrix, stack in ((mine, self), (theirs, other))
            )
            to[:slots, :, :rank] = of[:slots, :, :rank]

    def add_shared_(self, output: torch.Tensor, x: torch.Tensor, slot: int | torch.Tensor) -> None:
        """Add one slot's update to every row, in place."""
        if isinstance(slot, int):
            part = slice(slot * self.rows, (slot + 1) * self.rows)
            a, b = self.a[part], self.b[part]
        else:
            a, b = (
                stack.view(self.num_slots, self.rows, -1).index_select(0, slot)[0]
                for stack in (self.a, self.b)
            )
        output.addmm_(torch.mm(x, a.t()), b)

    def add_mixed_(self, output: torch.Tensor, x: torch.Tensor, is_other: torch.Tensor) -> None:
        """Add to each row the update of its own slot, in place; is_other (rows, slots, 1)."""
        num_slots = is_other.shape[1]
        part = num_slots * self.rows
        low = torch.mm(x, self.a[:part].t())
        # Not a product with zero: another adapter's overflow would stay.
        low.view(len(x), num_slots, self.rows).masked_fill_(is_other, 0)
        output.addmm_(low, self.b[:part])


@dataclass(frozen=True)
class LoraBatch:
    """The adapters of the rows of one forward pass: one for all, or one each or none."""

    stacks: Sequence[StackedLora | None]
    slot: int | torch.Tensor = 0
    """Of the one for all; a tensor is read anew at each replay of a captured step."""
    is_other: torch.Tensor | None = None  # (rows, slots, 1)
    key: Hashable = None
    """Steps with the same key read the same memory."""

    def add_(self, output: torch.Tensor, group: int, x: torch.Tensor) -> None:
        """Add the adapters' part to the output of a projection, in place."""
        stack = self.stacks[group]
        if stack is None:
            return
        if self.is_other is None:
            stack.add_shared_(output, x, self.slot)
        else:
            stack.add_mixed_(output, x, self.is_other)


def others_of(slots: Sequence[int | None], num_slots: int, device: torch.device) -> torch.Tensor:
    """Return which slots are not a row's own (rows, num_slots, 1)."""
    own = torch.tensor([-1 if slot is None else slot for slot in slots], device=device)
    return (own[:, None] != torch.arange(num_slots, device=device))[:, :, None]
