"""Linear layers that read the same input, as one matrix: one product in place of several."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from src.model.core.float8 import Float8Weight, fits
from src.model.core.layers import Projection
from src.out_of_memory import trim_heap

ONEDNN_ROWS = 4
"""From so many rows on, oneDNN is faster on a CPU, although it compiles for each number of rows."""


class FusedProjection(Projection):
    """Its output is that of all layers side by side."""

    _is_turned = True
    """Whether a CPU's float32 weights of one input lie side by side."""

    def __init__(self, names: list[str], modules: list[Any]) -> None:
        super().__init__(names, modules)
        self._weight: Tensor | None = None  # (out features, in features)
        self._bias: Tensor | None = None
        self._float8: Float8Weight | None = None
        # Packed weights, of 4 bits, cannot be put into one matrix.
        if all(type(module) is nn.Linear for module in modules):
            self._weight = _fuse([module.weight for module in modules], is_turned=self._is_turned)
            if any(module.bias is not None for module in modules):
                self._bias = torch.cat([_bias(module) for module in modules])
            self._has_onednn = (
                _is_cpu_float32(self._weight) and torch.backends.mkldnn.is_available()
            )

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Return one output (tokens, out features of all layers)."""
        if self._float8 is not None:
            output = self._float8.product(x)
            return [output if self._bias is None else output + self._bias]
        if self._weight is None:
            return [torch.cat(super().__call__(x), dim=-1)]
        if self._has_onednn and not torch.compiler.is_compiling() and len(x) >= ONEDNN_ROWS:
            parts = x, self._weight, self._bias
            return [torch.ops.mkldnn._linear_pointwise(*parts, "none", [], "")]
        return [linear(x, self._weight, self._bias)]

    def hold_in_float8(self, *, for_training: bool) -> int:
        """Hold the matrix in float8 alone, if its size allows it; return of how many layers."""
        if self._weight is None or not fits(self._weight):
            return 0
        self._float8 = Float8Weight.of(self._weight, for_training=for_training)
        self._weight = None
        for module in self.modules:
            module.weight = None
        return len(self.modules)


class RowMajorProjection(FusedProjection):
    """One whose weights lie as the compiled step of a CPU reads them."""

    _is_turned = False


def _is_cpu_float32(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _fuse(parts: Sequence[nn.Parameter], *, is_turned: bool) -> Tensor:
    """Put the parts below each other; they become views, so that no second copy stays.

    On a CPU the outputs of one input lie side by side in memory: reading them for one token is up
    to twice as fast as when the inputs of one output do.
    """
    is_turned = is_turned and _is_cpu_float32(parts[0])
    if len(parts) == 1:
        whole = parts[0].data.t().contiguous().t() if is_turned else parts[0].data
    elif is_turned:
        whole = torch.cat([part.data.t() for part in parts], dim=1).t()
    else:
        whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    trim_heap()  # weights that became parts of wider ones have left gaps
    return whole


def _bias(module: nn.Linear) -> Tensor:
    if module.bias is not None:
        return module.bias.data
    return module.weight.new_zeros(module.out_features)
