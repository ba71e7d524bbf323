"""What there is to train on: how many devices, and how much memory a rank may take of its own.

torch is imported by the functions that need it: the supervisor counts devices without it.
"""

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.environment import TrainEnvironment
from src.errors import UserError
from src.files.printable import show_bytes
from src.gpus import count_gpus, find_device
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
NUM_STREAMS = 2
"""Of a GPU: one for plain passes, and one on which passes are captured."""
LATER_LIBRARIES = 130e6
"""The part of them that is loaded only with the model."""
BESIDE_RANKS = 300e6
"""Bytes of the processes beside the ranks: the agent, Cog's server, its worker and the client."""


@dataclass(frozen=True)
class Resources:
    """What one rank has to work with; bytes."""

    device: "torch.device"
    available: float
    """What a GPU has free, or this machine for one of its processes with all that it holds."""
    libraries: float
    """What the libraries take of a process' memory beside the model; on a GPU that is cuBLAS."""
    alone: float
    """What would be available to a single process."""
    dtype: "torch.dtype"
    """The precision of the base model."""

    @property
    def on_gpus(self) -> bool:
        return self.device.type == "cuda"

    @property
    def room(self) -> float:
        """What is left beside the libraries."""
        return self.available - self.libraries

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
    num_gpus = count_gpus()
    if num_gpus == 0:
        return asked or min(2, len(os.sched_getaffinity(0))), False
    if asked is not None and asked > num_gpus:
        print(f"NUM_PROCESSES is {asked}, and there are {num_gpus} GPUs: all are used", flush=True)
    return min(asked or num_gpus, num_gpus), True


def check_processes(num_processes: int, limit: float | None) -> None:
    """Refuse more processes without a GPU than there is memory for their libraries.

    It loads no torch: nothing has been started yet that would take memory.
    """
    for expected, size, available in (
        ("a larger DEVICE_MEMORY_GB", LIBRARIES, limit),
        ("fewer processes (NUM_PROCESSES)", num_processes * LIBRARIES, free_memory()),
    ):
        if available is not None and size > available:
            raise UserError(
                f"the libraries of {num_processes} CPU processes take {show_bytes(LIBRARIES)} "
                f"each, and there are {show_bytes(available)}; expected {expected} or more memory"
            )


def expected_resources(environment: TrainEnvironment) -> Resources:
    """Return what each rank of a run could count on if it began now."""
    import torch

    from src.model.precision import choose_dtype

    num_processes, limit = environment.num_processes or 1, environment.device_memory or math.inf
    device, libraries = torch.device("cpu"), LIBRARIES
    if environment.on_gpus:
        device = find_device()
        share = alone = min(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
        libraries = _cublas_workspaces(device)
    else:
        alone = max(0.0, free_memory() - BESIDE_RANKS)
        share = alone / num_processes
    return Resources(
        device=device,
        available=min(share, limit),
        libraries=libraries,
        alone=min(alone, limit),
        dtype=choose_dtype(device, environment.dtype),
    )


def measure_resources(device: "torch.device", environment: TrainEnvironment) -> Resources:
    """Return what each rank may count on: the least of what they have.

    All ranks call it together.
    """
    import torch
    import torch.distributed as dist

    from src.model.precision import choose_dtype

    num_processes, limit = 1, environment.device_memory or math.inf
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        libraries = _cublas_workspaces(device)
    else:
        num_processes = int(os.environ["LOCAL_WORLD_SIZE"])
        libraries = process_memory() + LATER_LIBRARIES
        free = free_memory() / num_processes + process_memory()
    # From what every machine computes in to what the fewest do.
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    choice = dtypes.index(choose_dtype(device, environment.dtype))
    found = torch.tensor([free, -libraries, choice], dtype=torch.float64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MIN)
    free, libraries, choice = found.tolist()
    return Resources(
        device=device,
        available=min(free, limit),
        libraries=-libraries,
        alone=min(free * num_processes, limit),
        dtype=dtypes[int(choice)],
    )


def _cublas_workspaces(device: "torch.device") -> float:
    """Return the bytes that cuBLAS keeps, for each stream and each thread, to multiply in.

    The backward pass has a thread of its own. How many they are is up to the GPU: 32 MiB or 8.
    """
    import torch

    before = torch.cuda.memory_allocated(device)
    ones = torch.ones(64, 64, device=device, requires_grad=True)
    torch.autograd.grad((ones @ ones).sum(), ones)
    del ones
    return NUM_STREAMS * (torch.cuda.memory_allocated(device) - before)


def keep_to_limit(device: "torch.device", resources: Resources, limit: float | None) -> None:
    """Have this rank refused memory that it was not given, all that it holds already included.

    Without a GPU the kernel would else end the process; a pass that is refused memory is split.
    """
    import torch

    if device.type == "cpu":
        # What the libraries load later is partly of files, which the kernel does not count.
        limit_process_memory(max(0.0, resources.available - process_memory() - LATER_LIBRARIES))
    elif limit is not None:
        _, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)


def peak_memory(device: "torch.device") -> float:
    """Return the bytes that this rank held at most."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_process_memory()


def peak_line(device: "torch.device", planned: float | None) -> str:
    """Return what a rank held at most, beside what was planned."""
    kind = "GPU" if device.type == "cuda" else "CPU process"
    told = "" if planned is None else f", {show_bytes(planned)} planned"
    return f"memory: {show_bytes(peak_memory(device))} at the peak of a {kind}{told}"
