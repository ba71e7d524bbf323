"""CUDA graphs of decode steps: one launch in place of hundreds."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Literal

import torch

from src.graphs.capture import Capture, Graph

MAX_GRAPHS = 512
"""The least recently used go first: those of adapters that lay elsewhere, or of rare settings."""

Step = Callable[[], torch.Tensor]
_NoGraph = Literal["warmed up", "refused"]


class CudaGraphs:
    """Captures each shape of step at its second call; the first one, run plainly, warms it up.

    Steps of one shape must read and write the same memory. A shape that cannot be captured runs
    plainly.
    """

    def __init__(self, capture: Capture, *, max_graphs: int = MAX_GRAPHS) -> None:
        self._capture, self._max_graphs = capture, max_graphs
        self._graphs: OrderedDict[Hashable, Graph[torch.Tensor] | _NoGraph] = OrderedDict()

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
