"""LoRA beside frozen products (Hu et al. 2021): y = x W' + scale (drop(x) A') B'."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from src.model.core.layers import Projection


class Update(Protocol):
    """What adapters add to the outputs of layers that read the same input."""

    def low(self, x: Tensor, /) -> Tensor:
        """Return the low-rank input of all the layers (tokens, ranks)."""
        ...

    def add_(self, outputs: Sequence[Tensor], low: Tensor, /) -> None:
        """Add to each layer's output (tokens, out features), in place."""
        ...


class Updates(NamedTuple):
    """What adapters add in one layer."""

    qkv: Update | None = None
    o: Update | None = None
    gate_up: Update | None = None
    down: Update | None = None


@dataclass(frozen=True)
class TrainedUpdate:
    """The update by matrices that are being trained; None for a layer that is not adapted."""

    matrices: tuple[tuple[Tensor, Tensor] | None, ...]
    scale: float
    mask: Tensor | None = None
    """1 for inputs that stay, else 0 (tokens, in features); one draw serves all the layers."""

    def low(self, x: Tensor) -> Tensor:
        """Return one product with the A of all layers."""
        dropped = x if self.mask is None else x * self.mask.to(x.dtype)
        return linear(dropped, torch.cat([pair[0] for pair in self.matrices if pair]).to(x.dtype))

    def add_(self, outputs: Sequence[Tensor], low: Tensor) -> None:
        """Add each layer's product with its B."""
        adapted = [(out, pair[1]) for out, pair in zip(outputs, self.matrices, strict=True) if pair]
        parts = low.split([lora_B.shape[1] for _, lora_B in adapted], dim=-1)
        for (output, lora_B), part in zip(adapted, parts, strict=True):
            output.addmm_(part, lora_B.T.to(part.dtype), alpha=self.scale)


class TrainedLora:
    """The LoRA matrices that PEFT attached to the layers of a projection."""

    def __init__(self, projection: Projection) -> None:
        self._in_features = projection.in_features
        self._matrices: list[tuple[nn.Parameter, nn.Parameter] | None] = []
        settings = set()
        for layer in projection.modules:
            if not getattr(layer, "lora_A", None):
                self._matrices.append(None)
                continue
            (name,) = layer.lora_A
            self._matrices.append((layer.lora_A[name].weight, layer.lora_B[name].weight))
            settings.add((layer.scaling[name], getattr(layer.lora_dropout[name], "p", 0.0)))
        # All that we attach are alike.
        ((self._scale, self._dropout),) = settings or {(1.0, 0.0)}

    def update(self, num_tokens: int, *, with_dropout: bool) -> TrainedUpdate | None:
        """Return the update of a pass, with a new draw of what is dropped."""
        if not any(self._matrices):
            return None
        dropout = self._dropout if with_dropout else 0.0
        mask = None
        if dropout:
            device = self.parameters[0].device
            mask = draw_mask(num_tokens, self._in_features, dropout, device)
        # What dropout leaves is scaled up, here once for all of it.
        return TrainedUpdate(tuple(self._matrices), self._scale / (1 - dropout), mask)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return A and B of each layer that is adapted."""
        return [matrix for pair in self._matrices if pair for matrix in pair]


def draw_mask(rows: int, columns: int, dropout: float, device: torch.device) -> Tensor:
    """Return a matrix of uint8, 0 with the probability of dropout, in steps of 2^-16, and else 1.

    Random numbers are what takes the time on a CPU: one of 64 bits is enough for four.
    """
    size = rows * columns
    numbers = torch.empty((size + 3) // 4, dtype=torch.int64, device=device)
    quarters = numbers.random_(-(2**63), None).view(torch.int16)[:size]
    threshold = min(round(dropout * 2**16), 2**16 - 1) - 2**15
    return (quarters >= threshold).view(torch.uint8).view(rows, columns)
