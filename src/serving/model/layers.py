"""The layers of a decoder: RMS norm, rotary position embedding, and fused linear projections."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.linalg import vector_norm
from torch.nn.functional import rms_norm

ONEDNN_ROWS = 4
"""From so many rows on, oneDNN is faster on a CPU, although it compiles for each number of rows."""


class RMSNorm:
    """Scales rows to unit mean square (Zhang and Sennrich 2019), with the base model's weight."""

    def __init__(self, module: Any) -> None:
        self._weight: torch.Tensor = module.weight  # (hidden,)
        self._epsilon: float = module.variance_epsilon
        self._epsilon_tensor = self._weight.new_full((1, 1), self._epsilon)
        # On a CPU, torch's own goes through twice as many steps.
        self._is_by_hand = self._weight.device.type == "cpu" and self._weight.dtype == torch.float32

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised rows (tokens, hidden)."""
        if not self._is_by_hand:
            return rms_norm(x, self._weight.shape, self._weight, self._epsilon)
        share = 1 / x.shape[-1]
        if len(x) == 1:
            scale = torch.addmm(self._epsilon_tensor, x, x.t(), alpha=share).rsqrt_()
        else:
            norm = vector_norm(x, dim=-1, keepdim=True)
            scale = torch.addcmul(self._epsilon_tensor, norm, norm, value=share).rsqrt_()
        return (x * scale).mul_(self._weight)


class RotaryTable:
    """Rotary embedding (Su et al. 2021): cosines and sines by the base model's own frequencies."""

    def __init__(self, rotary_embedding: Any, *, dtype: torch.dtype) -> None:
        self._inv_freq: torch.Tensor = rotary_embedding.inv_freq.float()
        self._scaling: float = rotary_embedding.attention_scaling
        self._dtype = dtype
        self._table = torch.empty(0)

    def grow(self, num_positions: int) -> None:
        """Know at least this many positions."""
        if num_positions <= len(self._table):
            return
        positions = torch.arange(num_positions, device=self._inv_freq.device).float()
        angles = positions[:, None] * self._inv_freq
        cos, sin = angles.cos() * self._scaling, angles.sin() * self._scaling
        # The minus of the rotation is in the table: x2 lands on the first half.
        parts = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], 1)
        self._table = parts.to(self._dtype)[:, :, None]  # (positions, 2, 1, head size)

    def rows(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (cosines, sines) of these positions, each (tokens, 1, head size)."""
        cos, sin = self._table.index_select(0, positions).unbind(1)
        return cos, sin


def rotate_(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turn query or key heads by their position, in place (tokens, heads, head size)."""
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    torch.addcmul(heads * cos, swapped, sin, out=heads)


class Projection:
    """Linear layers of the base model that read the same input, as one matrix."""

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
    is_turned = _is_cpu_float32(parts[0])
    if len(parts) == 1:
        whole = parts[0].data.t()
        whole = whole.contiguous() if is_turned else whole
    elif is_turned:
        whole = torch.cat([part.data.t() for part in parts], dim=1)
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
