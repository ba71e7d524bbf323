"""The keys and values of all layers, in blocks of tokens, and the tables of each slot's blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from src.serving.cache.lazy_zeros import lazy_zeros
from src.transfer import to_device

BLOCK_SIZE = 32
"""Tokens."""
Block = tuple[int, ...]
"""The pages of the same tokens in all tables of a group; each has them in a few layers."""
NO_BLOCK: Block = ()
"""In place of what a slot does not see any more."""
EMPTY, SINK, FIRST_PAGE = 0, 1, 2
"""A page that is never written, and one that idle rows write to, before those for tokens."""
SINK_PLACE = SINK * BLOCK_SIZE


@dataclass(frozen=True)
class LayerGroup:
    """The layers of one window; a block has a page in each of the group's tables."""

    window: int | None
    """How many of the last tokens they see; None is all."""
    tables: slice
    """Among those of all groups."""

    @property
    def num_pages(self) -> int:
        """Of a block."""
        return self.tables.stop - self.tables.start

    def first_seen(self, position: int) -> int:
        """Return the number of the first block that a token at a position sees."""
        return 0 if self.window is None else max(0, position + 1 - self.window) // BLOCK_SIZE

    def most_blocks(self, num_tokens: int, num_read: int) -> int:
        """Return how many blocks so many tokens need at once, read by at most `num_read`."""
        most = num_blocks_of(num_tokens)
        # The first one may hold a single token of the window.
        return most if self.window is None else min(most, num_blocks_of(self.window + num_read) + 1)


@dataclass(frozen=True)
class LayerGroups:
    """All of them, and where each layer is."""

    groups: tuple[LayerGroup, ...]
    layers_of_page: int
    places: tuple[tuple[int, int], ...]
    """The table of each layer, and its number in the pages of that."""

    @property
    def num_tables(self) -> int:
        """Of a slot."""
        return self.groups[-1].tables.stop


class KVCache:
    """One tensor for all layers and pages; keys and values of a token lie side by side.

    Pages that no token was written to cost no memory on a CPU.
    """

    def __init__(
        self,
        *,
        layers: LayerGroups,
        num_pages: int,
        num_slots: int,
        max_seq_len: int,
        num_key_value_heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`num_pages` are those for tokens."""
        self._heads, self._layers = num_key_value_heads, layers.places
        self.groups = layers.groups
        shape = (FIRST_PAGE + num_pages, BLOCK_SIZE, 2 * num_key_value_heads, head_size)
        self._data = lazy_zeros((layers.layers_of_page, *shape), dtype, device)
        self._pages = self._data.unbind(0)
        self._places = self._data.flatten(1, 2).unbind(0)
        self._is_written = [False] * len(self._pages[0])
        shape = layers.num_tables, num_slots, num_blocks_of(max_seq_len)
        self.tables = torch.full(shape, EMPTY, dtype=torch.long, device=device)
        """Which pages hold each slot's tokens, in their order, where a captured step reads it."""
        self.held: list[list[list[Block]]] = [[[] for _ in range(num_slots)] for _ in self.groups]
        """The blocks of each group and slot, for the host."""
        self.num_pages, self.dtype = num_pages, dtype
        self.token_bytes = 2 * num_key_value_heads * head_size * dtype.itemsize
        """Of one layer."""
        self.page_bytes = self._data[:, 0].nbytes

    def table(self, layer: int) -> int:
        """Return the number of a layer's table."""
        return self._layers[layer][0]

    def layer(self, number: int) -> Tensor:
        """Return a layer (pages, BLOCK_SIZE, keys' then values' heads, head size)."""
        return self._pages[self._layers[number][1]]

    def places(self, layer: int) -> Tensor:
        """Return the places of tokens in a layer (places, keys' then values' heads, head size).

        Written through this view: one index names page and token.
        """
        return self._places[self._layers[layer][1]]

    def read(self, layer: int, pages: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Return keys and values (rows, heads, tokens, head size) of pages (rows * blocks,)."""
        data = self.layer(layer).index_select(0, pages)
        data = data.view(rows, -1, *data.shape[2:]).transpose(1, 2)
        return data[:, : self._heads], data[:, self._heads :]

    def place(self, slot: int, position: int) -> list[int]:
        """Return the place of one token by each table."""
        number, offset = divmod(position, BLOCK_SIZE)
        return [page * BLOCK_SIZE + offset for held in self.held for page in held[slot][number]]

    def places_of(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Return the places of tokens (tables, tokens), on the device."""
        # Not by two indices, which would leave gaps between the tokens of a table.
        blocks = slots * self.tables.shape[2] + positions // BLOCK_SIZE
        pages = self.tables.flatten(1).index_select(1, blocks)
        return pages * BLOCK_SIZE + positions % BLOCK_SIZE

    def give(self, group: int, slot: int, blocks: list[Block], num_written: int) -> None:
        """Append blocks of a group to a slot, which will be written up to so many tokens at once.

        What lies behind them is cleared. A row may read it under a mask, where it is multiplied
        with zero; that does not make a number of what is none, and an adapter may have left that.
        """
        held, tables = self.held[group][slot], self._tables_of(self.groups[group])
        first = len(held)
        held += blocks
        empty = [EMPTY] * len(tables)
        pages = torch.tensor([block or empty for block in blocks])
        tables[:, slot, first : len(held)] = to_device(pages, tables.device).t()
        for page in held[-1]:
            if self._is_written[page] and len(held) * BLOCK_SIZE > num_written:
                self._data[:, page] = 0
        for block in blocks:
            for page in block:
                self._is_written[page] = True

    def copy(self, source: Block, target: Block, num_tokens: int) -> None:
        """Give one block the first tokens of another."""
        for old, new in zip(source, target, strict=True):
            self._data[:, new, :num_tokens] = self._data[:, old, :num_tokens]

    def drop(self, group: int, slot: int, numbers: range) -> None:
        """Take blocks from a slot, which does not see their tokens any more."""
        self.held[group][slot][numbers.start : numbers.stop] = [NO_BLOCK] * len(numbers)
        tables = self._tables_of(self.groups[group])
        tables[:, slot, numbers.start : numbers.stop] = EMPTY

    def clear(self, slot: int) -> None:
        """Take all blocks from a slot."""
        for held in self.held:
            held[slot] = []
        self.tables[:, slot] = EMPTY

    def _tables_of(self, group: LayerGroup) -> Tensor:
        return self.tables[group.tables]


def num_blocks_of(num_tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-num_tokens // BLOCK_SIZE)
