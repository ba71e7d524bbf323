"""A CUDA graph of some work: one launch in place of hundreds or thousands."""

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
Graph = tuple[Callable[[], object], T]
"""A function that replays the work, and what the work returned."""


class Capture(Protocol):
    """Records work without running it; raises RuntimeError for what cannot be recorded."""

    def __call__(self, work: Callable[[], T], /) -> Graph[T]: ...


def cuda_capture() -> Capture:
    """Return the capture on a GPU, whose graphs share their memory: one runs at a time."""
    stream = torch.cuda.Stream()
    pool = torch.cuda.graph_pool_handle()

    def capture(work: Callable[[], T], /) -> Graph[T]:
        nonlocal pool
        graph, random_state = torch.cuda.CUDAGraph(), torch.cuda.get_rng_state()
        torch.cuda.synchronize()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            try:
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                output = work()
            except BaseException:
                # torch.cuda.graph would leave this thread in the capture.
                with suppress(RuntimeError):
                    graph.capture_end()
                # The pool is lost, and the random numbers' state believes that it is captured.
                pool = torch.cuda.graph_pool_handle()
                fresh = torch.Generator("cuda")
                fresh.set_state(random_state)
                torch.cuda.default_generators[stream.device.index].graphsafe_set_state(fresh)
                raise
            graph.capture_end()
        return graph.replay, output

    return capture
