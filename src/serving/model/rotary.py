"""Rotary position embedding (Su et al. 2021) from tables."""

from typing import Any

import torch


class RotaryTable:
    """Cosines and sines of every position, with the base model's own frequencies."""

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
