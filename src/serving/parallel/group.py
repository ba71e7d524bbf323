"""The process group that the ranks of a model compute in: NCCL between GPUs, gloo between CPUs."""

import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=10)
"""Ranks that compile wait for each other; one that has ended is noticed at once, in other ways."""


def join_group(meeting: Path, *, rank: int, num_ranks: int, device: torch.device) -> None:
    """Join the other ranks, which meet in a file."""
    if device.type == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's name may have no address
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=meeting.as_uri(),
        rank=rank,
        world_size=num_ranks,
        timeout=TIMEOUT,
    )


def leave_group() -> None:
    """Leave the others, who may have ended: what waits for them, on a GPU too, goes on."""
    if (group := dist.group.WORLD) is not None:
        with suppress(Exception):  # of whatever has ended already
            group.abort()
        with suppress(Exception):
            dist.destroy_process_group()
