"""What this rank's device has to give, and what the rank took of it."""

import os

import torch
import torch.distributed as dist

from src.host_memory import (
    free_memory,
    limit_process_memory,
    peak_process_memory,
    process_memory,
)
from src.model.base_model import training_dtype
from src.training.plan.plan import LATER_LIBRARIES, Resources


def measure_machine(device: torch.device, limit: float | None) -> Resources:
    """Return what each rank may count on: the least of what they have, at most `limit` bytes."""
    on_gpus = device.type == "cuda"
    if on_gpus:
        free, whole = torch.cuda.mem_get_info(device)
        if limit is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), device)
        libraries = 0.0
    else:
        free = free_memory() / int(os.environ["LOCAL_SIZE"])
        if limit is not None:
            limit_process_memory(limit + LATER_LIBRARIES)
        libraries = process_memory() + LATER_LIBRARIES
    least = torch.tensor(min(free, limit or free), dtype=torch.float64, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return Resources(
        on_gpus=on_gpus,
        available=float(least),
        libraries=libraries,
        has_bfloat16=training_dtype(device) == torch.bfloat16,
    )


def peak_memory(device: torch.device) -> float:
    """Return the bytes that this rank held at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_process_memory()
