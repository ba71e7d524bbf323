"""How many tokens the key/value cache holds, and how many of them one sequence."""

from dataclasses import dataclass

import torch

from src.errors import UserError
from src.files.printable import show_bytes
from src.host_memory import free_memory
from src.model.shape import ADAPTER_SHARE
from src.serving.cache.kv_cache import BLOCK_SIZE, num_blocks_of

CACHE_SHARE = {"cuda": 0.7, "cpu": 0.3}
"""Of the memory that is free beside the weights; a CPU's is also other programs'."""
SHORTEST_CONTEXT = 256
"""With room for fewer tokens nothing is served."""


@dataclass(frozen=True)
class CachePlan:
    """The size of the cache."""

    num_blocks: int
    num_bytes: int
    max_seq_len: int
    """The longest sequence that it holds."""
    state_bytes: int = 0
    """What gated delta layers keep of all slots beside it."""

    @property
    def description(self) -> str:
        """A line for the log."""
        cache = f"KV cache: {self.num_bytes / 1e9:.1f} GB, {self.num_blocks * BLOCK_SIZE:,} tokens"
        return f"{cache}; states: {self.state_bytes / 1e9:.1f} GB" if self.state_bytes else cache


def plan_cache(
    token_bytes: int,
    *,
    max_seq_len: int,
    num_slots: int,
    most_held: int | None,
    state_bytes: int = 0,
    asked_bytes: float | None,
    free: int,
    device: torch.device,
) -> CachePlan:
    """Return the cache that fits into the free bytes of a device, or that has those asked for.

    `most_held` is how many tokens of one sequence are needed at once; None for all of them.
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
    most = num_slots * num_blocks_of(max_seq_len)
    num_blocks = min(most, max(0, room - state_bytes) // (token_bytes * BLOCK_SIZE))
    needed = num_blocks_of(max_seq_len if most_held is None else min(max_seq_len, most_held))
    if num_blocks < min(needed, num_blocks_of(SHORTEST_CONTEXT)):
        least = token_bytes * min(max_seq_len, SHORTEST_CONTEXT) + state_bytes
        states = f" and the states of {num_slots}" if state_bytes else ""
        source = f"{share:.0%} of the memory that is free beside the weights"
        raise UserError(
            f"base model: expected room for the keys and values of one request{states}, at least "
            f"{show_bytes(least)}; found {show_bytes(room)}, "
            f"{source if asked_bytes is None else 'KV_CACHE_GB'}"
        )
    if num_blocks < needed:
        max_seq_len = num_blocks * BLOCK_SIZE
    return CachePlan(num_blocks, num_blocks * BLOCK_SIZE * token_bytes, max_seq_len, state_bytes)


def adapter_bytes_that_fit(free: int) -> int:
    """Return how much of the free memory of a device the adapters on it may take."""
    return int(ADAPTER_SHARE * free)


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()
