"""The LoRA matrices of all adapter slots for one projection, stacked into two."""

from collections.abc import Mapping

import torch

from src.serving.lora.weights import LoadedModule


class StackedLora:
    """Slot after slot, and in a slot one block of `rank` rows for each fused layer.

    B is block-diagonal within a slot: a layer's block reaches that layer's outputs alone.
    """

    def __init__(
        self,
        *,
        names: tuple[str, ...],
        in_features: int,
        out_features: tuple[int, ...],
        num_slots: int,
        rank: int,
        like: torch.Tensor,
    ) -> None:
        self.names = names
        self.num_slots = num_slots
        self.rank = rank
        self._ends = torch.tensor(out_features).cumsum(0).tolist()
        self.rows = len(names) * rank
        self.a = like.new_zeros((num_slots * self.rows, in_features))
        self.b = like.new_zeros((num_slots * self.rows, sum(out_features)))

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
        """Copy what a stack of another rank holds, as far as there is room."""
        for mine, theirs in ((self.a, other.a), (self.b, other.b)):
            width = mine.shape[1]
            blocks = mine.view(-1, self.rank, width)
            rank = min(self.rank, other.rank)
            blocks[:, :rank] = theirs.view(-1, other.rank, width)[:, :rank]

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

    def add_mixed_(
        self, output: torch.Tensor, x: torch.Tensor, is_other: torch.Tensor, num_slots: int
    ) -> None:
        """Add to each row the update of its own slot, in place; is_other (rows, slots, 1)."""
        part = num_slots * self.rows
        low = torch.mm(x, self.a[:part].t())
        # Not a product with zero: another adapter's overflow would stay.
        low.view(len(x), num_slots, self.rows).masked_fill_(is_other, 0)
        output.addmm_(low, self.b[:part])
