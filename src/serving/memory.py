"""How many requests the memory has room for."""

import os

import torch

CUDA_SHARE, HOST_SHARE = 0.8, 0.5


def num_slots_that_fit(bytes_per_slot: int, most: int, device: torch.device) -> int:
    """Return how many slots of full length fit beside what is in memory, at least one."""
    if device.type == "cuda":
        free = CUDA_SHARE * torch.cuda.mem_get_info(device)[0]
    else:
        free = HOST_SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(most, int(free // bytes_per_slot)))
