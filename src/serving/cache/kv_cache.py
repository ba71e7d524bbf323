"""The keys and values of all layers, in blocks of tokens, and the table of each slot's blocks."""

import torch
from torch import Tensor

from src.serving.cache.lazy_zeros import lazy_zeros
from src.transfer import to_device

BLOCK_SIZE = 32
"""Tokens."""
EMPTY, SINK, FIRST_BLOCK = 0, 1, 2
"""A block that is never written, and one that idle rows write to, before those for tokens."""
SINK_PLACE = SINK * BLOCK_SIZE


class KVCache:
    """One tensor for all layers and blocks; keys and values of a token lie side by side.

    Blocks that no token was written to cost no memory on a CPU.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_slots: int,
        max_seq_len: int,
        num_key_value_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`num_blocks` are those for tokens."""
        self._heads = num_key_value_heads
        shape = (FIRST_BLOCK + num_blocks, BLOCK_SIZE, 2 * num_key_value_heads, head_size)
        self._data = lazy_zeros((num_layers, *shape), dtype, device)
        self._blocks = self._data.unbind(0)
        self._places = self._data.flatten(1, 2).unbind(0)
        self._is_written = [False] * len(self._blocks[0])
        width = num_blocks_of(max_seq_len)
        self.tables = torch.full((num_slots, width), EMPTY, dtype=torch.long, device=device)
        """Which block holds each slot's tokens, in their order, where a captured step reads it."""
        self.held: list[list[int]] = [[] for _ in range(num_slots)]
        """The same, for the host."""
        self.num_blocks, self.dtype = num_blocks, dtype
        self.token_bytes = 2 * num_key_value_heads * head_size * dtype.itemsize
        """Of one layer."""

    def layer(self, number: int) -> Tensor:
        """Return a layer (blocks, BLOCK_SIZE, keys' then values' heads, head size)."""
        return self._blocks[number]

    def places(self, layer: int) -> Tensor:
        """Return the places of tokens in a layer (places, keys' then values' heads, head size).

        Written through this view: one index names block and token.
        """
        return self._places[layer]

    def read(self, layer: int, blocks: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (rows, heads, tokens, head size) of blocks (rows * blocks,)."""
        data = self._blocks[layer].index_select(0, blocks)
        data = data.view(rows, -1, *data.shape[2:]).transpose(1, 2)
        return data[:, : self._heads], data[:, self._heads :]

    def place(self, slot: int, position: int) -> int:
        """Return the place of one token."""
        return self.held[slot][position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE

    def places_of(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Return the places of tokens (tokens,), on the device."""
        blocks = self.tables[slots, positions // BLOCK_SIZE]
        return blocks * BLOCK_SIZE + positions % BLOCK_SIZE

    def give(self, slot: int, blocks: list[int], num_written: int) -> None:
        """Append blocks to a slot, which will be written up to so many tokens at once.

        What lies behind them is cleared. A row may read it under a mask, where it is multiplied
        with zero; that does not make a number of what is none, and an adapter may have left that.
        """
        held = self.held[slot]
        first = len(held)
        held += blocks
        table = self.tables[slot, first : len(held)]
        table.copy_(to_device(torch.tensor(blocks), table.device))
        if self._is_written[held[-1]] and len(held) * BLOCK_SIZE > num_written:
            self._data[:, held[-1]] = 0
        for block in blocks:
            self._is_written[block] = True

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Give one block the first tokens of another."""
        self._data[:, target, :num_tokens] = self._data[:, source, :num_tokens]

    def drop(self, slot: int, number: int) -> None:
        """Take one block from a slot, which does not see its tokens any more."""
        self.held[slot][number] = EMPTY
        self.tables[slot, number] = EMPTY

    def clear(self, slot: int) -> None:
        """Take all blocks from a slot."""
        self.held[slot] = []
        self.tables[slot] = EMPTY


def num_blocks_of(num_tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-num_tokens // BLOCK_SIZE)
