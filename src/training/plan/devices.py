"""What there is to train on: how many devices, and how much memory each has to give.

Standard library only: the supervisor asks without loading what the ranks need.
"""

import os
import shutil
import subprocess


def count_devices(asked: int | None = None) -> tuple[int, bool]:
    """Return how many processes to train with, and whether they are GPUs.

    Not more than there are GPUs; without a GPU the default is two CPU processes.
    """
    num_gpus = _count_gpus()
    if num_gpus:
        return min(asked or num_gpus, num_gpus), True
    return asked or min(2, os.cpu_count() or 1), False


def _count_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def free_gpu_memory() -> float | None:
    """Return the bytes that are free on the fullest GPU; None where it cannot be asked."""
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    if shutil.which(query[0]) is None:
        return None
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    found = [int(line) for line in listed.stdout.split() if line.isdigit()]
    return min(found) * 2**20 if found else None
