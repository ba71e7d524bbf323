"""What adapters add to the rows of a decoding step, whose pages a table on the device names."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from src.model.core.layers import Projection
from src.model.core.proof import are_close
from src.model.shape import PAGE_RANK, num_pages_of
from src.serving.lora.stacked import StackedLora
from src.serving.lora.weights import LoadedModule
from src.settings import MAX_RANK

MAX_PAGES = num_pages_of(MAX_RANK)
"""Of one adapter."""


class RowsUpdate(NamedTuple):
    """What the pages of one projection add to each row, in one call."""

    a: Tensor  # (pages, layers * PAGE_RANK, in features)
    b: Tensor  # (pages, layers * PAGE_RANK, out features), zero outside a layer's own outputs
    ends: Tensor  # (layers,) int32, of their outputs
    table: Tensor  # (rows, most pages of a row) int32; -1 is none

    def low(self, x: Tensor) -> Tensor:
        """Return x: the numbers between A and B are made where they are used."""
        return x

    def add_(self, outputs: Sequence[Tensor], low: Tensor) -> None:
        """Add to the output of all layers (rows, out features), in place."""
        (output,) = outputs
        torch.ops.serving.add_lora(output, low, *self)


def add_plainly(
    output: Tensor, x: Tensor, a: Tensor, b: Tensor, ends: Tensor, table: Tensor
) -> None:
    """Do what `RowsUpdate` does by plain steps, which copy the pages of each row."""
    if table.device.type == "cpu":  # whose numbers the host may read
        table = table[:, : int((table >= 0).sum(1).max())]
    pages = table.clamp(min=0)
    low = torch.einsum("ti,tpri->tpr", x.to(a.dtype), a[pages])
    low.masked_fill_((table < 0)[:, :, None], 0)
    output += torch.einsum("tpr,tpro->to", low, b[pages])


add_lora = torch.library.custom_op("serving::add_lora", add_plainly, mutates_args=("output",))


@add_lora.register_fake
def _(output: Tensor, x: Tensor, a: Tensor, b: Tensor, ends: Tensor, table: Tensor) -> None:
    """Return nothing new."""


def use_kernel(projections: Iterable[Projection], like: Tensor) -> str | None:
    """Have a GPU add what adapters do by one kernel; return why not, after trying it."""
    if like.device.type != "cuda":
        return None
    try:
        from src.serving.lora.kernel import add_lora as kernel

        reason = find_fault(kernel, projections, like)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if reason is None:
        add_lora.register_kernel("cuda")(kernel)
    return reason


@torch.no_grad()
def find_fault(
    kernel: Callable[..., None], projections: Iterable[Projection], like: Tensor
) -> str | None:
    """Return how a kernel differs from plain steps with an adapter, with another, and without."""
    generator = torch.Generator(like.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        return drawn / shape[-1] ** 0.5

    table = torch.full((3, MAX_PAGES), -1, dtype=torch.int32)
    table[0, :2], table[2, 0] = torch.tensor([2, 0]), 1
    table = table.to(like.device)
    for projection in projections:
        stack = StackedLora(projection, num_pages=3, like=like)
        sizes = zip(projection.names, projection.out_features, strict=True)
        rank = 3 * PAGE_RANK
        modules = {
            name: LoadedModule(draw(rank, projection.in_features), draw(out, rank))
            for name, out in sizes
        }
        stack.write(range(3), modules)
        x, plain = draw(3, projection.in_features), draw(3, sum(projection.out_features))
        found = plain.clone()
        # The plain steps need no width beyond the pages that are there.
        add_plainly(plain, x, stack.a, stack.b, stack.ends, table[:, :2])
        kernel(found, x, stack.a, stack.b, stack.ends, table)
        if not are_close([found], [plain], like.dtype):
            return "its results differ from those of plain steps"
    return None
