"""CUDA graphs of decode steps: one launch in place of hundreds."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Literal

import torch

MAX_GRAPHS = 512
"""The least recently used go first: those of adapters that lay elsewhere, or of rare settings."""

Step = Callable[[], torch.Tensor]
Graph = tuple[Callable[[], object], torch.Tensor]
"""A function that replays a step, and what the step returned."""
_NoGraph = Literal["warmed up", "refused"]
Capture = Callable[[Step], Graph]
"""Records a step without running it; raises RuntimeError for one that cannot be recorded."""


def cuda_capture() -> Capture:
    """Return the capture of steps on a GPU."""
    stream = torch.cuda.Stream()
    # What one graph needs on its way serves the others too, which never run beside it.
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Graph:
        nonlocal pool
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                output = step()
            except BaseException:
                # torch.cuda.graph would leave this thread in the capture; its pool is lost.
                pool = torch.cuda.graph_pool_handle()
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay, output

    return capture


class CudaGraphs:
    """Captures each shape of step at its second call; the first one, run plainly, warms it up.

    Steps of one shape must read and write the same memory. A shape that cannot be captured runs
    plainly.
    """

    def __init__(self, capture: Capture, *, max_graphs: int = MAX_GRAPHS) -> None:
        self._capture, self._max_graphs = capture, max_graphs
        self._graphs: OrderedDict[Hashable, Graph | _NoGraph] = OrderedDict()

    def run(self, shape: Hashable, step: Step) -> torch.Tensor:
        """Run the step, or the graph of one of this shape, and return what it returns."""
        graph = self._graphs.pop(shape, None)
        if graph is None:
            graph = "warmed up"
        elif graph == "warmed up":
            try:
                graph = self._capture(step)
            except RuntimeError as error:
                print(f"a shape of step runs without a CUDA graph: {error}", flush=True)
                graph = "refused"
        self._graphs[shape] = graph
        if len(self._graphs) > self._max_graphs:
            self._graphs.popitem(last=False)
        if isinstance(graph, str):
            return step()
        replay, output = graph
        replay()
        return output
