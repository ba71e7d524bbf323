"""How many requests the memory has room for."""

import os

import torch

from src.host_memory import free_memory

CACHE_SHARE, ADAPTER_SHARE = 0.7, 0.15


def num_slots_that_fit(bytes_per_slot: int, most: int, device: torch.device) -> int:
    """Return how many slots of full length fit beside what is in memory, at least one."""
    return max(1, min(most, int(CACHE_SHARE * _free_bytes(device) // bytes_per_slot)))


def adapter_bytes_that_fit(device: torch.device) -> int:
    """Return how much memory the adapters on the device may take."""
    return int(ADAPTER_SHARE * _free_bytes(device))


def resident_bytes() -> int:
    """Return how much of the machine's memory this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_bytes_in_use(device: torch.device) -> int:
    """Return how much of a GPU's memory is taken."""
    free, whole = torch.cuda.mem_get_info(device)
    return whole - free


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory()
