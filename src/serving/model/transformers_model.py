"""Any other architecture: transformers' own forward pass, one row after the other."""

import inspect
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import DynamicCache

from src.model.base_model import linear_modules
from src.model.isolation import takes_positions
from src.serving.lora.weights import LoadedAdapter, LoadedModule
from src.weights.cache.cache_use import CacheUse

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""What architectures call what they keep of the tokens that were read."""


@dataclass
class _Slot:
    """What is kept of a prompt and its answer."""

    ids: list[int] = field(default_factory=list)
    """All tokens: a prompt is read at once, as not every architecture reads on in chunks."""
    cache: dict[str, Any] = field(default_factory=dict)


class _Caches:
    """A cache of transformers' own for each slot in use."""

    def __init__(self) -> None:
        self.of_slot: dict[int, _Slot] = {}

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Refuse: what transformers keeps of a slot is never known to another one."""
        raise RuntimeError("a cache of transformers' own is not copied")

    def clear_tail(self, slot: int, num_tokens: int) -> None:
        """Do nothing: each request has a cache of its own."""

    def mark_written(self, slot: int, num_tokens: int) -> None:
        """Let go of a slot's cache."""
        self.of_slot.pop(slot, None)


class _HookedLora:
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
            modules = {
                name: LoadedModule(module.lora_A.to(self._device), module.lora_B.to(self._device))
                for name, module in adapter.modules.items()
            }
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


class TransformersRunner:
    """Prefills and decodes in transformers' own forward pass."""

    is_static = False

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._device = next(model.parameters()).device
        self._vocab_size = len(self._model.get_output_embeddings().weight)
        # Old architectures score all tokens of the prompt.
        asked = inspect.signature(self._model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in asked else {}
        # As in transformers' own generation: the others make a cache themselves, or keep nothing.
        can_be_given = self._model._supports_default_dynamic_cache()
        self._takes_cache = can_be_given and "past_key_values" in asked
        self.kv_cache = _Caches()
        self.lora = _HookedLora(model, self._device)

    def length_bucket(self, length: int) -> int:
        """Return the length: no step is captured here."""
        return length

    def prefill(
        self, slot: int, ids: list[int], start: int, lora_slot: int | None, *, num_scores: int
    ) -> torch.Tensor | None:
        """Read tokens into a slot; return the scores after the last one (1, vocabulary)."""
        if start == 0:
            self.kv_cache.of_slot[slot] = kept = _Slot()
            if self._takes_cache:
                text_config = self._model.config.get_text_config(decoder=True)
                kept.cache = {"past_key_values": DynamicCache(config=text_config)}
        self.kv_cache.of_slot[slot].ids += ids
        return self._logits(slot, len(ids) + start, lora_slot) if num_scores else None

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, lengths: list[int], lora: Any
    ) -> torch.Tensor:
        """Read one token in each row and return the next scores (rows, vocabulary)."""
        logits = torch.zeros((len(tokens), self._vocab_size), device=self._device)
        for slot, length in enumerate(lengths):
            if length:
                lora_slot = None if lora is None else lora[slot]
                self.kv_cache.of_slot[slot].ids.append(int(tokens[slot]))
                logits[slot] = self._logits(slot, 1, lora_slot)[0]
        return logits

    def _logits(self, slot: int, num_new: int, lora_slot: int | None) -> torch.Tensor:
        self.lora.activate(lora_slot)
        kept = self.kv_cache.of_slot[slot]
        # Where nothing was kept, all is read again.
        new = kept.ids[-num_new:] if kept.cache else kept.ids
        options = {**self._options, **kept.cache}
        if takes_positions(self._model):
            # Not every architecture counts on from what its cache holds.
            positions = range(len(kept.ids) - len(new), len(kept.ids))
            options["position_ids"] = torch.tensor([list(positions)], device=self._device)
        output = self._model(
            torch.tensor([new], device=self._device),
            use_cache=bool(kept.cache) or len(kept.ids) == num_new,
            **options,
        )
        kept.cache = {name: output[name] for name in CACHE_NAMES if output.get(name) is not None}
        return output.logits[:, -1]
