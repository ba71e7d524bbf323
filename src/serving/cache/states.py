"""What gated delta layers keep of the tokens of each slot, beside the key/value cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from src.model.core.blocks.gated_delta import GatedDelta
from src.serving.cache.lazy_zeros import lazy_zeros


class States:
    """A state of fixed size for each layer and slot, and the tail of its convolution."""

    def __init__(
        self,
        deltas: Sequence[GatedDelta],
        *,
        num_slots: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`deltas` are the layers, all of one size."""
        size, first = (len(deltas), num_slots), deltas[0]
        self._states = lazy_zeros((*size, *first.state_shape), torch.float32, device)
        self._tails = lazy_zeros((*size, *first.tail_shape), dtype, device)

    def of_rows(self, layer: int, num_rows: int) -> tuple[Tensor, Tensor]:
        """Return the tails and states of the first slots in a layer, to be changed in place."""
        return self._tails[layer, :num_rows], self._states[layer, :num_rows]

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the tails and states of slots (slots,) in a layer."""
        tails, states = self._tails[layer], self._states[layer]
        return tails.index_select(0, slots), states.index_select(0, slots)

    def write(self, layer: int, slots: Tensor, tails: Tensor, states: Tensor) -> None:
        """Replace those of slots."""
        self._tails[layer].index_copy_(0, slots, tails)
        self._states[layer].index_copy_(0, slots, states)

    def clear(self, slot: int) -> None:
        """Begin a text in a slot."""
        self._tails[:, slot] = 0
        self._states[:, slot] = 0
