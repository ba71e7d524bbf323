"""Zeros that cost memory only where they are written."""

import math
import mmap
import sys

import torch

_NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""Asks for addresses alone, however many there are; Python's mmap names it from 3.13 on."""


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return zeros; on a CPU each page takes memory once it is written, and none before.

    `torch.zeros` would write all of them.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
