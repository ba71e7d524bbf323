"""What there is to train on: how many devices, and how much memory a rank may take of its own.

torch is imported by the functions that need it: the supervisor counts devices without it.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from src.host_memory import (
    free_memory,
    limit_process_memory,
    peak_process_memory,
    process_memory,
)

if TYPE_CHECKING:
    import torch

LIBRARIES = 520e6
"""Bytes that the libraries take of a process without a GPU."""
LATER_LIBRARIES = 130e6
"""The part of them that is loaded only with the model."""


@dataclass(frozen=True)
class Resources:
    """What one rank has to work with; bytes."""

    on_gpus: bool
    available: float
    """Free memory of a GPU, or of this machine for one of its processes."""
    libraries: float
    """What the libraries take of a process' memory before there is a model; 0 on GPUs."""
    has_bfloat16: bool

    @property
    def kind(self) -> str:
        return "GPU" if self.on_gpus else "CPU process"

    @property
    def kinds(self) -> str:
        return "GPUs" if self.on_gpus else "CPU processes"


def count_devices(asked: int | None = None) -> tuple[int, bool]:
    """Return how many processes to train with, and whether they are GPUs.

    Not more than there are GPUs; without a GPU the default is two CPU processes.
    """
    num_gpus = _count_gpus()
    if num_gpus == 0:
        return asked or min(2, len(os.sched_getaffinity(0))), False
    if asked is not None and asked > num_gpus:
        print(f"NUM_PROCESSES is {asked}, and there are {num_gpus} GPUs: all are used", flush=True)
    return min(asked or num_gpus, num_gpus), True


def _count_gpus() -> int:
    """Return how many GPUs CUDA would show a process."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    installed = re.findall(r"^GPU \d+:.*\(UUID: (\S+)\)", listed.stdout, re.MULTILINE)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(installed)
    numbers = [str(number) for number in range(len(installed))]
    uuids = re.findall(r"UUID: ([^\s)]+)", listed.stdout)

    def is_known(name: str) -> bool:
        return name in numbers or any(name and uuid.startswith(name) for uuid in uuids)

    # CUDA takes the beginning of a UUID too, and nothing from the first unknown name on.
    return len(list(takewhile(is_known, map(str.strip, visible.split(",")))))


def expected_resources(*, on_gpus: bool, num_processes: int, limit: float | None) -> Resources:
    """Return what each rank of a run could count on if it began now, at most `limit` bytes."""
    import torch

    if on_gpus:
        free = min(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    else:
        free = free_memory() / num_processes
    device = torch.device("cuda" if on_gpus else "cpu")
    return _resources(device, min(free, limit or free), libraries=LIBRARIES)


def measure_resources(device: "torch.device", limit: float | None) -> Resources:
    """Return what each rank may count on: the least of what they have, at most `limit` bytes.

    All ranks call it together; the limit holds from then on.
    """
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if limit is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    else:
        free = free_memory() / int(os.environ["LOCAL_WORLD_SIZE"])
        if limit is not None:
            limit_process_memory(limit + LATER_LIBRARIES)
    least = torch.tensor(min(free, limit or free), dtype=torch.float64, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return _resources(device, float(least), libraries=process_memory() + LATER_LIBRARIES)


def _resources(device: "torch.device", available: float, *, libraries: float) -> Resources:
    import torch

    from src.model.base_model import training_dtype

    on_gpus = device.type == "cuda"
    has_bfloat16 = training_dtype(device) == torch.bfloat16
    return Resources(on_gpus, available, 0.0 if on_gpus else libraries, has_bfloat16)


def peak_memory(device: "torch.device") -> float:
    """Return the bytes that this rank held at most."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_process_memory()
