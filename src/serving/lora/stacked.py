"""The adapters of a batch: pages of LoRA matrices, of which each row has its own."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from src.model.shape import PAGE_RANK
from src.serving.lora.weights import LoadedModule
from src.serving.model.layers import Projection
from src.serving.model.lazy_zeros import lazy_zeros


class StackedLora:
    """The pages of one projection: in each one block of `PAGE_RANK` rows for each fused layer.

    B is block-diagonal within a page: a layer's block reaches that layer's outputs alone.
    """

    def __init__(self, projection: Projection, *, num_pages: int, like: torch.Tensor) -> None:
        self.names = projection.names
        self._ends = torch.tensor(projection.out_features).cumsum(0).tolist()
        self._rows = len(self.names) * PAGE_RANK
        sizes, kind = (num_pages, self._rows), (like.dtype, like.device)
        self._a = lazy_zeros((*sizes, projection.in_features), *kind)
        self._b = lazy_zeros((*sizes, sum(projection.out_features)), *kind)

    def write(self, pages: Sequence[int], modules: Mapping[str, LoadedModule]) -> None:
        """Give an adapter's updates its pages; layers that it leaves out get none."""
        shape = (len(self.names), len(pages) * PAGE_RANK)
        a, b = (stack.new_zeros(*shape, stack.shape[2]) for stack in (self._a, self._b))
        begin = 0
        for number, (name, end) in enumerate(zip(self.names, self._ends, strict=True)):
            if name in modules:
                module = modules[name]
                rank = len(module.lora_A)
                a[number, :rank].copy_(module.lora_A)
                b[number, :rank, begin:end].copy_(module.lora_B.t())
            begin = end
        where = torch.tensor(pages, device=self._a.device)
        for stack, new in ((self._a, a), (self._b, b)):
            in_pages = new.view(len(self.names), len(pages), PAGE_RANK, -1).transpose(0, 1)
            stack[where] = in_pages.reshape(len(pages), self._rows, -1)

    def add_(
        self,
        output: torch.Tensor,
        x: torch.Tensor,
        pages: slice | torch.Tensor,
        is_other: torch.Tensor | None,  # (rows, pages, 1)
    ) -> None:
        """Add to each row the updates of some pages, in place, but those of other rows."""
        if isinstance(pages, slice):
            a, b = self._a[pages], self._b[pages]
        else:
            a, b = (stack.index_select(0, pages) for stack in (self._a, self._b))
        low = torch.mm(x, a.flatten(0, 1).t())
        if is_other is not None:
            # Not a product with zero: another adapter's overflow would stay.
            low.view(len(x), len(a), self._rows).masked_fill_(is_other, 0)
        output.addmm_(low, b.flatten(0, 1))


@dataclass(frozen=True)
class LoraBatch:
    """The adapters of the rows of one forward pass: some pages, and whose they are."""

    stacks: Mapping[int, StackedLora]
    """By the number of the projection; only those that the adapters change."""
    pages: slice | torch.Tensor
    """A tensor is read anew at each replay of a captured step."""
    is_other: torch.Tensor | None = None  # (rows, pages, 1); None where all are every row's own
    key: Hashable = None
    """Steps with the same key read the same memory."""

    def add_(self, output: torch.Tensor, group: int, x: torch.Tensor) -> None:
        """Add the adapters' part to the output of a projection, in place."""
        if group in self.stacks:
            self.stacks[group].add_(output, x, self.pages, self.is_other)
