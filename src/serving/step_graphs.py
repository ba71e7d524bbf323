"""CUDA graphs of decode steps: one launch in place of hundreds."""

from collections.abc import Callable, Hashable

import torch


class StepGraphs:
    """Captures each shape of step at its second call; the first one, run plainly, warms it up.

    The step must read and write the same memory each time. A capture records and does not run.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, torch.Tensor] | None] = {}

    def run(self, shape: Hashable, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Run the step, or the graph of one of this shape, and return what it returns."""
        if shape not in self._graphs:
            self._graphs[shape] = None
            return step()
        known = self._graphs[shape]
        if known is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = step()
            known = self._graphs[shape] = graph, output
        graph, output = known
        graph.replay()
        return output
