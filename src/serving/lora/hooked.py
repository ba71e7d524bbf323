"""Adapters beside the layers of a model that runs in transformers."""

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from src.model.base_model import linear_modules
from src.serving.lora.weights import LoadedAdapter, LoadedModule
from src.weights.cache.cache_use import CacheUse


class HookedLora:
    """Adds adapters to the outputs of layers by hooks; they stay as long as a request has them."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._adapters: dict[int, LoadedAdapter] = {}
        self._num_users: Counter[int] = Counter()
        self._num_hits = self._num_copied = 0
        self._active: dict[str, LoadedModule] = {}
        for name, module in linear_modules(model).items():
            module.register_forward_hook(self._hook(name))

    @property
    def use(self) -> CacheUse:
        """How well the adapters serve."""
        num_bytes = sum(adapter.num_bytes for adapter in self._adapters.values())
        return CacheUse(len(self._adapters), num_bytes, self._num_hits, self._num_copied)

    def acquire(self, adapter: LoadedAdapter) -> int | None:
        """Bring an adapter onto the device and return its slot."""
        known = (n for n, other in self._adapters.items() if other.key == adapter.key)
        if (slot := next(known, None)) is None:
            slot = max(self._adapters, default=-1) + 1
            modules = adapter.on_device(self._device)
            self._adapters[slot] = LoadedAdapter(adapter.key, modules)
            self._num_copied += 1
        else:
            self._num_hits += 1
        self._num_users[slot] += 1
        return slot

    def release(self, slot: int) -> None:
        """Let go of an adapter."""
        self._num_users[slot] -= 1
        if not self._num_users[slot]:
            del self._adapters[slot]

    def batch(self, slots: list[int | None]) -> Any:
        """Return the slots of the rows of a step."""
        return slots

    def activate(self, slot: int | None) -> None:
        """Choose the adapter of the next forward passes."""
        self._active = {} if slot is None else dict(self._adapters[slot].modules)

    def _hook(self, name: str) -> Any:
        def add_update(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> Any:
            update = self._active.get(name)
            if update is None:
                return None
            (x,) = inputs
            low = linear(x.to(update.lora_A.dtype), update.lora_A)
            return output + linear(low, update.lora_B)

        return add_update
