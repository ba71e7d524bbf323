"""CUDA graphs of decode steps: one launch in place of hundreds."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

MAX_GRAPHS = 512
"""The least recently used ones go: of adapters that lay elsewhere, or of rare sampling."""

Captured = tuple[torch.cuda.CUDAGraph, torch.Tensor]


class CudaGraphs:
    """Captures each shape of step at its second call; the first one, run plainly, warms it up.

    The step must read and write the same memory each time. A capture records and does not run; a
    shape that cannot be captured runs plainly from then on.
    """

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, Captured | None] = OrderedDict()
        self._plain: set[Hashable] = set()
        self._pool: Any = None

    def run(self, shape: Hashable, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Run the step, or the graph of one of this shape, and return what it returns."""
        is_new = shape not in self._graphs
        captured = self._graphs.pop(shape, None)
        if captured is None and not is_new and shape not in self._plain:
            captured = self._capture(shape, step)
        self._graphs[shape] = captured
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        if captured is None:
            return step()
        graph, output = captured
        graph.replay()
        return output

    def _capture(self, shape: Hashable, step: Callable[[], torch.Tensor]) -> Captured | None:
        graph = torch.cuda.CUDAGraph()
        # What one graph needs on its way serves the others too, which never run beside it.
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = step()
        except RuntimeError as error:
            print(f"a shape of step runs without a CUDA graph: {error}", flush=True)
            self._plain.add(shape)
            return None
        return graph, output
