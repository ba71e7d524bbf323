"""Any other architecture: transformers' own forward pass, one row after the other."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import DynamicCache

from src.model.base_model import linear_modules
from src.serving.lora.weights import LoadedAdapter, LoadedModule
from src.weights.cache.cache_use import CacheUse


class TransformersRunner:
    """Adapters are added to a layer's output by hooks; a slot's cache is transformers' own."""

    is_static = False

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._device = next(model.parameters()).device
        self._dtype = next(model.parameters()).dtype
        self._caches: dict[int, DynamicCache] = {}
        self._adapters: dict[int, LoadedAdapter] = {}
        self._num_users: Counter[int] = Counter()
        self._num_hits = self._num_copied = 0
        self._lora_slots: Sequence[int | None] = ()
        self._is_active: Sequence[bool] = ()
        self._active: dict[str, LoadedModule] = {}
        for name, module in linear_modules(model).items():
            module.register_forward_hook(self._hook(name))

    def acquire(self, adapter: LoadedAdapter) -> int | None:
        """Bring an adapter onto the device and return its lora_slot."""
        known = (n for n, other in self._adapters.items() if other.key == adapter.key)
        if (lora_slot := next(known, None)) is None:
            lora_slot = self._copy_adapter(adapter)
        else:
            self._num_hits += 1
        self._num_users[lora_slot] += 1
        return lora_slot

    def _copy_adapter(self, adapter: LoadedAdapter) -> int:
        lora_slot = max(self._adapters, default=-1) + 1
        modules = {
            name: LoadedModule(module.lora_A.to(self._device), module.lora_B.to(self._device))
            for name, module in adapter.modules.items()
        }
        self._num_copied += 1
        self._adapters[lora_slot] = LoadedAdapter(adapter.key, modules)
        return lora_slot

    def release(self, lora_slot: int) -> None:
        """Let go of an adapter."""
        self._num_users[lora_slot] -= 1
        if not self._num_users[lora_slot]:
            del self._adapters[lora_slot]

    def prefill(
        self, slot: int, ids: Sequence[int], start: int, lora_slot: int | None, *, num_scores: int
    ) -> torch.Tensor | None:
        """Read tokens into a slot; return the scores after the last one (1, vocabulary)."""
        if start == 0:
            self._caches[slot] = DynamicCache(config=self._model.config)
        logits = self._logits(slot, torch.tensor([list(ids)], device=self._device), lora_slot)
        return logits if num_scores else None

    def set_rows(self, lora_slots: Sequence[int | None], is_active: Sequence[bool]) -> None:
        """Say which adapter each row has from now on."""
        self._lora_slots, self._is_active = lora_slots, is_active

    def plan(self, lengths: Sequence[int]) -> tuple[Any, ...]:
        """Return what decides the shapes of the next step."""
        return ()

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        """Read one token in each row and return the next scores (rows, vocabulary)."""
        logits = torch.zeros((len(tokens), self._model.config.vocab_size), device=self._device)
        for slot, (lora_slot, is_active) in enumerate(
            zip(self._lora_slots, self._is_active, strict=True)
        ):
            if is_active:
                logits[slot] = self._logits(slot, tokens[slot].view(1, 1), lora_slot)[0]
        return logits

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Give the target slot what the source slot knows of its first tokens."""
        raise RuntimeError("what transformers keeps of a slot is not copied to another one")

    def clear_tail(self, slot: int, num_tokens: int) -> None:
        """Do nothing: each request has a cache of its own."""

    def mark_written(self, slot: int, num_tokens: int) -> None:
        """Let go of a slot's cache."""
        self._caches.pop(slot, None)

    def adapter_use(self) -> CacheUse:
        """Return how well the adapters serve; they stay as long as a request has them."""
        adapters = list(self._adapters.values())
        num_bytes = sum(adapter.num_bytes for adapter in adapters)
        return CacheUse(len(adapters), num_bytes, hits=self._num_hits, misses=self._num_copied)

    def _logits(self, slot: int, ids: torch.Tensor, lora_slot: int | None) -> torch.Tensor:
        self._active = {} if lora_slot is None else dict(self._adapters[lora_slot].modules)
        try:
            output = self._model(
                ids, past_key_values=self._caches[slot], use_cache=True, logits_to_keep=1
            )
        finally:
            self._active = {}
        return output.logits[:, -1]

    def _hook(self, name: str) -> Any:
        def add_update(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> Any:
            update = self._active.get(name)
            if update is None:
                return None
            (x,) = inputs
            low = linear(x.to(update.lora_A.dtype), update.lora_A)
            return output + linear(low, update.lora_B)

        return add_update
