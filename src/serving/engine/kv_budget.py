"""How many requests the memory has room for."""

import torch

from src.errors import UserError
from src.host_memory import free_memory
from src.model.shape import ADAPTER_SHARE

CACHE_SHARE = 0.7


def num_slots_that_fit(bytes_per_slot: int, most: int, device: torch.device) -> int:
    """Return how many slots of full length fit beside what is in memory.

    Raises UserError where not even one does.
    """
    room = int(CACHE_SHARE * _free_bytes(device))
    if room < bytes_per_slot:
        raise UserError(
            f"base model: expected room for the keys and values of one request of full length, "
            f"{bytes_per_slot / 1e9:.2f} GB; found {room / 1e9:.2f} GB, {CACHE_SHARE:.0%} of the "
            f"memory that is free beside the weights"
        )
    return min(most, room // bytes_per_slot)


def adapter_bytes_that_fit(device: torch.device) -> int:
    """Return how much memory the adapters on the device may take."""
    return int(ADAPTER_SHARE * _free_bytes(device))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()
