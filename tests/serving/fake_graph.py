"""A CUDA graph on a CPU: the operations of a step are recorded, and replayed on the same memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[[], torch.Tensor]


class FakeCapture:
    """Captures an engine's steps as CUDA does: a capture changes nothing, a replay runs no Python.

    What Python computed stays as it was, and what a step computed is lost before each replay.
    """

    def __init__(self, *, refuses: Callable[[int], bool] = lambda number: False) -> None:
        self.num_captures = self.num_replays = 0
        self._refuses = refuses

    def __call__(self, step: Step) -> tuple[Callable[[], None], torch.Tensor]:
        self.num_captures += 1
        if self._refuses(self.num_captures):
            raise RuntimeError("operation not permitted when stream is capturing")
        with _Recorder() as recorder:
            output = step()
        recorder.undo()

        def replay() -> None:
            self.num_replays += 1
            recorder.replay()

        return replay, output


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[tuple[int, torch.Tensor]]]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        inputs = _tensors((args, kwargs))
        if func._schema.is_mutable:
            self._save(tensor for _, tensor in inputs)
        result = func(*args, **kwargs)
        known = {_memory(tensor) for _, tensor in inputs}
        made = [(n, tensor) for n, tensor in _tensors(result) if _memory(tensor) not in known]
        self._made |= {_memory(tensor) for _, tensor in made}
        # A view is the same view at each replay: it is not made again.
        if made or func._schema.is_mutable:
            self._calls.append((func, args, kwargs, made))
        return result

    def _save(self, tensors) -> None:
        for tensor in tensors:
            memory = _memory(tensor)
            if memory not in self._made and memory not in self._before:
                flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self._before[memory] = flat, flat.clone()

    @torch.no_grad()
    def undo(self) -> None:
        for tensor, before in self._before.values():
            tensor.copy_(before)
        self._before.clear()

    @torch.no_grad()
    def replay(self) -> None:
        for _, _, _, made in self._calls:
            for _, tensor in made:
                tensor.fill_(float("nan") if tensor.is_floating_point() else True)
        for func, args, kwargs, made in self._calls:
            found = dict(_tensors(func(*args, **kwargs)))
            for number, tensor in made:
                tensor.copy_(found[number])


def _tensors(tree: Any) -> list[tuple[int, torch.Tensor]]:
    leaves = enumerate(tree_leaves(tree))
    return [(number, leaf) for number, leaf in leaves if isinstance(leaf, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
