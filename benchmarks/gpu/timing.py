"""How long work takes on a device, and how far its result is from another."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

Work = Callable[[], object]


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Work, *, repeat: int = 1) -> float:
    """Return the mean seconds of a call, with what it starts on the device."""
    synchronize()
    started = time.perf_counter()
    for _ in range(repeat):
        work()
    synchronize()
    return (time.perf_counter() - started) / repeat


def median_seconds(work: Work, *, repeat: int = 8, warm: int = 2) -> float:
    """Return the median seconds of a call, after some that do not count."""
    for _ in range(warm):
        work()
    if not torch.cuda.is_available():
        return statistics.median(seconds_of(work) for _ in range(repeat))
    # By the device's clock: short work takes less than to wait for it.
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeat + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    synchronize()
    return statistics.median(a.elapsed_time(b) / 1e3 for a, b in pairwise(events))


def seconds_in_graph(work: Work, *, calls: int = 5) -> float:
    """Return the seconds of a call inside a CUDA graph of several, without gaps of launches."""
    if not torch.cuda.is_available():
        return median_seconds(work, repeat=3, warm=1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    return median_seconds(graph.replay, repeat=5, warm=1) / calls


def count_kernels(work: Work) -> tuple[int, float]:
    """Return how many kernels a call launches, and the seconds that they take."""
    if not torch.cuda.is_available():
        return 0, 0.0
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profile:
        work()
        synchronize()
    kernels = [event for event in profile.key_averages() if event.self_device_time_total]
    return sum(k.count for k in kernels), sum(k.self_device_time_total for k in kernels) / 1e6


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference by that of the reference."""
    found, reference = (x.detach().double().cpu() for x in (found, reference))
    return float((found - reference).norm() / reference.norm().clamp_min(1e-30))
