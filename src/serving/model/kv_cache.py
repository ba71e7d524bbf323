"""Keys and values of the tokens read so far, a fixed slot for each running request."""

import torch


class KVCache:
    """One tensor for all layers and slots; keys and values of a token lie side by side.

    Pages of it that no token was written to cost no memory on a CPU.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_key_value_heads: int,
        head_size: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_slots = num_slots
        self.capacity = capacity
        self._num_written = [0] * num_slots
        self._heads = num_key_value_heads
        shape = (num_layers, num_slots, capacity, 2 * num_key_value_heads, head_size)
        self._data = torch.zeros(shape, dtype=dtype, device=device)
        # Written through the flat view: one index names slot and position.
        self.flat = self._data.flatten(1, 2).unbind(0)  # per layer (slots * capacity, heads, size)

    def read(self, slots: slice, positions: slice) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Return (keys, values) as one view a layer (slots, heads, positions, head size)."""
        view = self._data[:, slots, positions].transpose(2, 3)
        return view[:, :, : self._heads].unbind(0), view[:, :, self._heads :].unbind(0)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Give the target slot the first tokens of the source slot."""
        self._data[:, target, :num_tokens] = self._data[:, source, :num_tokens]
        self.mark_written(target, num_tokens)

    def clear_tail(self, slot: int, num_tokens: int) -> None:
        """Clear what lies in a slot behind the prompt that is about to be read into it.

        What a row does not see yet is multiplied with zero, which does not make a number of what is
        none, and an adapter may have left that.
        """
        self._data[:, slot, num_tokens : self._num_written[slot]] = 0
        self._num_written[slot] = num_tokens

    def mark_written(self, slot: int, num_tokens: int) -> None:
        """Say that no more than so many tokens were written to a slot."""
        self._num_written[slot] = max(self._num_written[slot], num_tokens)
