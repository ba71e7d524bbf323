"""Linear layers that read the same input, as one matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

ONEDNN_ROWS = 4
"""From so many rows on, oneDNN is faster on a CPU, although it compiles for each number of rows."""


class Projection:
    """One or more linear layers of the base model, side by side."""

    def __init__(self, names: Sequence[str], modules: Sequence[Any]) -> None:
        self.names = tuple(names)
        self.in_features: int = modules[0].in_features
        self.out_features: tuple[int, ...] = tuple(module.out_features for module in modules)
        self._modules = tuple(modules)
        self._weight: torch.Tensor | None = None  # (in_features, out_features)
        self._bias: torch.Tensor | None = None
        if all(type(module) is nn.Linear for module in modules):
            self._weight = _fuse([module.weight for module in modules])
            if any(module.bias is not None for module in modules):
                self._bias = torch.cat([_bias(module) for module in modules])
            self._has_onednn = (
                _is_cpu_float32(self._weight) and torch.backends.mkldnn.is_available()
            )

    @property
    def is_fused(self) -> bool:
        """Whether it is one matrix, which can write into memory that is there."""
        return self._weight is not None

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the outputs of all layers, concatenated (tokens, out_features).

        A single row is written into `out`, where that is given.
        """
        if self._weight is not None:
            if self._has_onednn and len(x) >= ONEDNN_ROWS:
                return _onednn(x, self._weight, self._bias)
            if self._bias is None:
                return torch.mm(x, self._weight, out=out)
            return torch.addmm(self._bias, x, self._weight, out=out)
        # 4-bit layers hold packed weights, which cannot be put into one matrix.
        if len(self._modules) == 1:
            return self._modules[0](x)
        return torch.cat([module(x) for module in self._modules], dim=-1)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the residual plus the outputs (tokens, out_features)."""
        if self._weight is None or self._bias is not None:
            return residual + self(x)
        if self._has_onednn and len(x) >= ONEDNN_ROWS:
            return _onednn(x, self._weight, None).add_(residual)
        return torch.addmm(residual, x, self._weight)


def _is_cpu_float32(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight.t(), bias, "none", [], "")


def _fuse(parts: Sequence[nn.Parameter]) -> torch.Tensor:
    """Put the parts beside each other; they become views, so that no second copy stays.

    On a CPU the outputs of one input lie side by side in memory: reading them for one token is up
    to twice as fast as when the inputs of one output do.
    """
    if _is_cpu_float32(parts[0]):
        whole = torch.cat([part.data.t() for part in parts], dim=1)
    elif len(parts) == 1:
        whole = parts[0].data.t()
    else:
        whole = torch.cat([part.data for part in parts]).t()
    columns = whole.split([len(part) for part in parts], dim=1)
    for part, view in zip(parts, columns, strict=True):
        part.data = view.t()
    return whole


def _bias(module: nn.Linear) -> torch.Tensor:
    if module.bias is not None:
        return module.bias.data
    return module.weight.new_zeros(module.out_features)
