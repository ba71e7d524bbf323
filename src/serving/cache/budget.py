"""How many tokens the key/value cache holds, and how many of them one sequence."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import torch

from src.errors import UserError
from src.files.printable import show_bytes
from src.host_memory import free_memory
from src.model.shape import ADAPTER_SHARE
from src.serving.cache.kv_cache import BLOCK_SIZE, LayerGroups, num_blocks_of

CACHE_SHARE = {"cuda": 0.7, "cpu": 0.3}
"""Of the memory that is free beside the weights; a CPU's is also other programs'."""
SHORTEST_CONTEXT = 256
"""With room for fewer tokens nothing is served."""


@dataclass(frozen=True)
class CachePlan:
    """The size of the cache."""

    num_pages: int
    num_bytes: int
    max_seq_len: int
    """The longest sequence that it holds."""
    num_tokens: int
    """That it holds, however they are divided between the slots."""
    state_bytes: int = 0
    """What gated delta layers keep of all slots beside it."""

    @property
    def description(self) -> str:
        """A line for the log."""
        cache = f"KV cache: {self.num_bytes / 1e9:.1f} GB, {self.num_tokens:,} tokens"
        return f"{cache}; states: {self.state_bytes / 1e9:.1f} GB" if self.state_bytes else cache


def plan_cache(
    layers: LayerGroups,
    layer_bytes: int,
    *,
    max_seq_len: int,
    num_slots: int,
    most_read: int,
    state_bytes: int = 0,
    asked_bytes: float | None,
    free: int,
    device: torch.device,
) -> CachePlan:
    """Return the cache that fits into the free bytes of a device, or that has those asked for.

    `layer_bytes` are those of a token in a layer; `most_read` is how many tokens are read at once.
    `state_bytes` are those that all slots take beside their tokens. Raises UserError where there is
    no room for what was asked for, or for any useful context.
    """
    if asked_bytes is not None and asked_bytes > free:
        raise UserError(
            f"KV_CACHE_GB: expected at most {free / 1e9:.2f}, which is free beside the weights; "
            f"found {asked_bytes / 1e9:g}"
        )
    share = CACHE_SHARE[device.type]
    room = int(share * free if asked_bytes is None else asked_bytes)
    page_bytes = layer_bytes * layers.layers_of_page * BLOCK_SIZE
    context = num_blocks_of(max_seq_len)
    most = num_slots * context * layers.num_tables
    num_pages = min(most, max(0, room - state_bytes) // page_bytes)

    def needed_by_one(num_blocks: int) -> int:
        """Return how many pages one sequence of so many blocks needs at once."""
        return _num_pages(layers, num_blocks, 1, most_read)

    def needed_by_all(num_blocks: int) -> int:
        return _num_pages(layers, num_blocks, num_slots, most_read)

    if num_pages < needed_by_one(min(context, num_blocks_of(SHORTEST_CONTEXT))):
        shortest = num_blocks_of(min(max_seq_len, SHORTEST_CONTEXT))
        least = needed_by_one(shortest) * page_bytes + state_bytes
        states = f" and the states of {num_slots}" if state_bytes else ""
        source = f"{share:.0%} of the memory that is free beside the weights"
        raise UserError(
            f"base model: expected room for the keys and values of one request{states}, at least "
            f"{show_bytes(least)}; found {show_bytes(room)}, "
            f"{source if asked_bytes is None else 'KV_CACHE_GB'}"
        )
    num_blocks = _largest(context, num_pages, needed_by_one)
    if num_blocks < context:
        max_seq_len = num_blocks * BLOCK_SIZE
    num_tokens = _largest(num_slots * context, num_pages, needed_by_all) * BLOCK_SIZE
    return CachePlan(num_pages, num_pages * page_bytes, max_seq_len, num_tokens, state_bytes)


def _num_pages(layers: LayerGroups, num_blocks: int, num_sequences: int, most_read: int) -> int:
    """Return how many pages sequences need at once that have so many blocks of tokens together."""
    num_pages = 0
    for group in layers.groups:
        most = num_blocks
        if group.window is not None:
            # One of them is read, the others go on token by token.
            of_each = group.most_blocks(num_blocks * BLOCK_SIZE, 1)
            of_read = group.most_blocks(num_blocks * BLOCK_SIZE, most_read)
            most = min(most, (num_sequences - 1) * of_each + of_read)
        num_pages += most * group.num_pages
    return num_pages


def _largest(most: int, num_pages: int, needed: Callable[[int], int]) -> int:
    """Return the largest number of blocks up to the most that need no more pages than there are."""
    return bisect_right(range(most + 1), num_pages, key=needed) - 1


def adapter_bytes_that_fit(free: int) -> int:
    """Return how much of the free memory of a device the adapters on it may take."""
    return int(ADAPTER_SHARE * free)


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()
