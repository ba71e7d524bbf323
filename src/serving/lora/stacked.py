"""The adapters of a batch: pages of LoRA matrices, of which each row has its own."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.model.core.layers import Projection
from src.model.core.lora import Updates
from src.model.shape import PAGE_RANK
from src.serving.lora.weights import LoadedModule
from src.serving.model.lazy_zeros import lazy_zeros


class StackedLora:
    """The pages of one projection: in each one block of `PAGE_RANK` rows for each fused layer.

    B is block-diagonal within a page: a layer's block reaches that layer's outputs alone.
    """

    def __init__(self, projection: Projection, *, num_pages: int, like: Tensor) -> None:
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

    def read(self, pages: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return A (pages, rows, in features) and B (pages, rows, out features) of some pages."""
        if isinstance(pages, slice):
            return self._a[pages], self._b[pages]
        return self._a.index_select(0, pages), self._b.index_select(0, pages)


class PagedUpdate:
    """What the pages of one projection add to each row, but those of other rows."""

    def __init__(self, stack: StackedLora, pages: slice | Tensor, is_other: Tensor | None) -> None:
        (self._a, self._b), self._is_other = stack.read(pages), is_other

    def low(self, x: Tensor) -> Tensor:
        """Return the low-rank input of all pages (tokens, pages * rows)."""
        low = torch.mm(x, self._a.flatten(0, 1).t())
        if self._is_other is not None:
            # Not a product with zero: another adapter's overflow would stay.
            low.view(len(x), *self._a.shape[:2]).masked_fill_(self._is_other, 0)
        return low

    def add_(self, outputs: Sequence[Tensor], low: Tensor) -> None:
        """Add to the output of all layers (tokens, out features), in place."""
        (output,) = outputs
        output.addmm_(low.to(output.dtype), self._b.flatten(0, 1).to(output.dtype))


@dataclass(frozen=True)
class LoraBatch:
    """The adapters of the rows of one forward pass: some pages, and whose they are."""

    stacks: Mapping[int, StackedLora]
    """By the number of the projection; only those that the adapters change."""
    pages: slice | Tensor
    """A tensor is read anew at each replay of a captured step."""
    is_other: Tensor | None = None  # (rows, pages, 1); None where all are every row's own
    key: Hashable = None
    """Steps with the same key read the same memory."""

    def update(self, number: int) -> PagedUpdate | None:
        """Return what the adapters add to a projection."""
        stack = self.stacks.get(number)
        return None if stack is None else PagedUpdate(stack, self.pages, self.is_other)

    def of_layer(self, number: int) -> Updates:
        """Return what the adapters add in a layer."""
        first = number * len(Updates._fields)
        return Updates(*(self.update(first + part) for part in range(len(Updates._fields))))
