"""Root mean square layer normalisation (Zhang and Sennrich 2019)."""

from typing import Any

import torch
from torch.linalg import vector_norm
from torch.nn.functional import rms_norm


class RMSNorm:
    """Scales each row to unit mean square, with the weight of the base model's own module."""

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
