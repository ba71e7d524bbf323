"""The adapters of a batch: pages of LoRA matrices, of which each row has its own."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from src.model.core.layer import Layer
from src.model.core.layers import Projection
from src.model.core.lora import Update, Updates
from src.model.shape import PAGE_RANK
from src.serving.cache.lazy_zeros import lazy_zeros
from src.serving.lora.weights import LoadedModule


class StackedLora:
    """The pages of one projection: in each one block of `PAGE_RANK` rows for each fused layer.

    B is block-diagonal within a page: a layer's block reaches that layer's outputs alone.
    """

    def __init__(self, projection: Projection, *, num_pages: int, like: Tensor) -> None:
        self.names = projection.names
        self._ends = list(accumulate(projection.out_features))
        self.ends = torch.tensor(self._ends, dtype=torch.int32, device=like.device)
        """Where the outputs of each layer end."""
        self._rows = len(self.names) * PAGE_RANK
        sizes, kind = (num_pages, self._rows), (like.dtype, like.device)
        self.a = lazy_zeros((*sizes, projection.in_features), *kind)
        self.b = lazy_zeros((*sizes, self._ends[-1]), *kind)

    def write(self, pages: Sequence[int], modules: Mapping[str, LoadedModule]) -> None:
        """Give an adapter's updates its pages; layers that it leaves out get none."""
        first_rank = 0
        for run in _runs(pages):
            ranks = slice(first_rank, first_rank + PAGE_RANK * (run.stop - run.start))
            # (pages, layers, PAGE_RANK, features)
            a = self.a[run].unflatten(1, (-1, PAGE_RANK))
            b = self.b[run].unflatten(1, (-1, PAGE_RANK))
            begin, first_rank = 0, ranks.stop
            for number, (name, end) in enumerate(zip(self.names, self._ends, strict=True)):
                module = modules.get(name)
                # Outside a layer's block there have only ever been zeros.
                _fill(a[:, number], module and module.lora_A[ranks])
                _fill(b[:, number, :, begin:end], module and module.lora_B.t()[ranks])
                begin = end

    def read(self, pages: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return A (pages * rows, in features) and B (pages * rows, out features) of some pages."""
        if isinstance(pages, slice):
            a, b = self.a[pages], self.b[pages]
        else:
            a, b = self.a.index_select(0, pages), self.b.index_select(0, pages)
        return a.flatten(0, 1), b.flatten(0, 1)


class PagesUpdate(NamedTuple):
    """What some pages of one projection add to all rows, but to those that they are not of."""

    a: Tensor  # (pages * rows, in features)
    b: Tensor  # (pages * rows, out features)
    is_other: Tensor | None  # (tokens, pages, 1); None where all are every token's own

    def low(self, x: Tensor) -> Tensor:
        """Return the low-rank input of all pages (tokens, pages * rows)."""
        low = torch.mm(x, self.a.t())
        if self.is_other is not None:
            # Not a product with zero: another adapter's overflow would stay.
            low.view(*self.is_other.shape[:2], -1).masked_fill_(self.is_other, 0)
        return low

    def add_(self, outputs: Sequence[Tensor], low: Tensor) -> None:
        """Add to the output of all layers (tokens, out features), in place."""
        (output,) = outputs
        output.addmm_(low.to(output.dtype), self.b.to(output.dtype))


@dataclass(frozen=True)
class LoraBatch:
    """The adapters of the rows of one forward pass."""

    stacks: Mapping[Projection, StackedLora]
    """Only of those that the adapters change."""
    to_update: Callable[[StackedLora], Update]
    """Returns what the rows' pages of one projection add."""
    pages: Sequence[Sequence[int]] = ()
    """Those of each row."""
    key: Hashable = None
    """Steps with the same key read the same memory."""

    def update(self, projection: Projection) -> Update | None:
        """Return what the adapters add to a projection."""
        stack = self.stacks.get(projection)
        return None if stack is None else self.to_update(stack)

    def of_layer(self, layer: Layer) -> Updates:
        """Return what the adapters add in a layer."""
        return Updates(*map(self.update, layer.projections))


def _runs(pages: Sequence[int]) -> list[slice]:
    """Return the pages as slices, each as long as they follow each other."""
    runs: list[slice] = []
    for page in pages:
        if runs and runs[-1].stop == page:
            runs[-1] = slice(runs[-1].start, page + 1)
        else:
            runs.append(slice(page, page + 1))
    return runs


def _fill(place: Tensor, rows: Tensor | None) -> None:
    """Write rows (rank, size) into pages (pages, `PAGE_RANK`, size), and zeros behind them."""
    num_rows = 0 if rows is None else len(rows)
    whole, rest = divmod(num_rows, PAGE_RANK)
    if rows is not None and whole:
        place[:whole] = rows[: num_rows - rest].unflatten(0, (whole, PAGE_RANK))
    if whole < len(place):
        place[whole:] = 0
    if rows is not None and rest:
        place[whole, :rest] = rows[num_rows - rest :]
