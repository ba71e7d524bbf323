"""Linear layers that read the same input, as one matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

ONEDNN_ROWS = frozenset({8, 16, 32, 512})
"""oneDNN is faster for these, but compiles for each number of rows: only those that come often."""


class Projection:
    """One or more linear layers of the base model, side by side."""

    def __init__(self, names: Sequence[str], modules: Sequence[Any]) -> None:
        self.names = tuple(names)
        self.in_features: int = modules[0].in_features
        self.out_features: tuple[int, ...] = tuple(module.out_features for module in modules)
        self._modules = tuple(modules)
        self._weight: torch.Tensor | None = None  # (out_features, in_features)
        self._bias: torch.Tensor | None = None
        if all(type(module) is nn.Linear for module in modules):
            self._weight = _fuse([module.weight for module in modules])
            if any(module.bias is not None for module in modules):
                self._bias = _fuse([_bias(module) for module in modules])
            self._transposed = self._weight.t()
            self._has_onednn = (
                self._weight.device.type == "cpu"
                and self._weight.dtype == torch.float32
                and torch.backends.mkldnn.is_available()
            )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of all layers, concatenated (tokens, out_features)."""
        if self._weight is not None:
            if self._has_onednn and len(x) in ONEDNN_ROWS:
                return _onednn(x, self._weight, self._bias)
            return linear(x, self._weight, self._bias)
        # 4-bit layers hold packed weights, which cannot be put into one matrix.
        if len(self._modules) == 1:
            return self._modules[0](x)
        return torch.cat([module(x) for module in self._modules], dim=-1)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the residual plus the outputs (tokens, out_features)."""
        if self._weight is not None and self._bias is None:
            if self._has_onednn and len(x) in ONEDNN_ROWS:
                return _onednn(x, self._weight, None).add_(residual)
            return torch.addmm(residual, x, self._transposed)
        return residual + self(x)


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _fuse(parts: Sequence[nn.Parameter]) -> torch.Tensor:
    """Put the parts below each other; they become views, so that no second copy stays."""
    if len(parts) == 1:
        return parts[0].data
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole


def _bias(module: nn.Linear) -> nn.Parameter:
    if module.bias is not None:
        return module.bias
    return nn.Parameter(module.weight.new_zeros(module.out_features), requires_grad=False)
