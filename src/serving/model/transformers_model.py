"""Any other architecture: transformers' own forward pass, for the rows of one adapter at a time."""

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from src.model.core.families.table import dependent_rope
from src.model.isolation import differ, takes_positions
from src.out_of_memory import is_out_of_memory
from src.serving.lora.hooked import HookedLora
from src.serving.model.chunk import Chunk
from src.serving.model.padded_cache import has_positions, join, take

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""What architectures call what they keep of the tokens that were read."""


LENGTHS = 3, 7, 5
"""Of the prompts that are tried together."""
MAX_ID = 1000


@dataclass(eq=False)
class _Slot:
    """A prompt and its answer."""

    ids: list[int] = field(default_factory=list)
    """All tokens: a prompt is read at once, as not every architecture reads on in chunks."""
    num_read: int = 0
    batch: "_Batch | None" = None
    """Those with whom its last token was read."""

    def cache(self) -> dict[str, Any]:
        """Return what is kept of it, apart from the others."""
        if self.batch is None:
            return {}
        kept = self.batch.cache
        if len(self.batch.slots) == 1:
            return kept
        row = self.batch.slots.index(self)
        return {name: take(cache, row, self.num_read) for name, cache in kept.items()}


@dataclass(eq=False)
class _Batch:
    """Slots that were read together, and what is kept of them all."""

    slots: list[_Slot]
    cache: dict[str, Any]


class _Caches:
    """A cache of transformers' own for each slot in use."""

    def __init__(self) -> None:
        self.of_slot: dict[int, _Slot] = {}

    def has_room(self, key: Hashable, ids: list[int]) -> bool:
        """Return that there is room: transformers takes what it needs."""
        return True

    def place(self, slot: int, key: Hashable, ids: list[int]) -> int:
        """Return that nothing is known: what transformers keeps is never known to another slot."""
        return 0

    def grow(self, slot: int, num_tokens: int, start: int) -> bool:
        """Return that there is room."""
        return True

    def learn(self, slot: int, ids: list[int]) -> None:
        """Do nothing: each request has a cache of its own."""

    def release(self, slot: int, *, is_valid: bool) -> None:
        """Let go of a slot's cache."""
        self.of_slot.pop(slot, None)


class TransformersRunner:
    """Prefills and decodes in transformers' own forward pass."""

    is_static = can_speculate = False
    most_mixed = short_length = 0

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
        self.lora = HookedLora(model, self._device)
        fault = self._find_batch_fault()
        if fault is not None:
            print(f"rows decode one after the other: {fault}", flush=True)
        self._is_batched = fault is None

    def length_bucket(self, length: int) -> int:
        """Return the length: no step is captured here."""
        return length

    def prefill(self, chunks: Sequence[Chunk]) -> torch.Tensor | None:
        """Read tokens into slots; return the scores that are wanted of them (number, vocabulary).

        They are those after the last token of a prompt.
        """
        scores = [self._read(chunk) for chunk in chunks]
        wanted = [own for own in scores if own is not None]
        return torch.cat(wanted) if wanted else None

    def _read(self, chunk: Chunk) -> torch.Tensor | None:
        if chunk.start == 0:
            self.kv_cache.of_slot[chunk.slot] = kept = _Slot()
            if self._takes_cache:
                text_config = self._model.config.get_text_config(decoder=True)
                kept.batch = _Batch([kept], {"past_key_values": DynamicCache(config=text_config)})
        kept = self.kv_cache.of_slot[chunk.slot]
        kept.ids += chunk.ids
        self.lora.activate(chunk.lora_slot)
        return self._logits([kept], chunk.stop) if chunk.num_scores else None

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, lengths: list[int], lora: Any
    ) -> torch.Tensor:
        """Read one token in each row and return the next scores (rows, vocabulary)."""
        logits = torch.zeros((len(tokens), self._vocab_size), device=self._device)
        rows_of: dict[int | None, list[int]] = {}
        for row, (token, length) in enumerate(zip(tokens.tolist(), lengths, strict=True)):
            if length:
                self.kv_cache.of_slot[row].ids.append(token)
                rows_of.setdefault(None if lora is None else lora[row], []).append(row)
        for lora_slot, rows in rows_of.items():
            self.lora.activate(lora_slot)
            slots = [self.kv_cache.of_slot[row] for row in rows]
            logits[rows] = self._step(slots).to(logits.dtype)
        return logits

    def _step(self, slots: list[_Slot]) -> torch.Tensor:
        """Return the scores (slots, vocabulary) after the last token of each, not yet read."""
        if self._is_batched:
            return self._logits(slots, 1)
        return torch.cat([self._logits([slot], 1) for slot in slots])

    def _logits(self, slots: list[_Slot], num_new: int) -> torch.Tensor:
        cache = _gather(slots)
        # Where nothing was kept, all is read again.
        new = [slot.ids[-num_new:] if cache else slot.ids for slot in slots]
        options = {**self._options, **cache}
        lengths = [len(slot.ids) for slot in slots]
        if takes_positions(self._model):
            # Not every architecture counts on from what its cache holds.
            positions = [list(range(len(slot.ids)))[-len(new[0]) :] for slot in slots]
            options["position_ids"] = torch.tensor(positions, device=self._device)
        if len(set(lengths)) > 1 and any(map(has_positions, cache.values())):
            is_there = [[0] * (max(lengths) - length) + [1] * length for length in lengths]
            options["attention_mask"] = torch.tensor(is_there, device=self._device)
        output = self._model(
            torch.tensor(new, device=self._device),
            use_cache=bool(cache) or lengths == [num_new],
            **options,
        )
        batch = _Batch(slots, {k: output[k] for k in CACHE_NAMES if output.get(k) is not None})
        for slot in slots:
            slot.batch, slot.num_read = batch, len(slot.ids)
        return output.logits[:, -1]

    def _find_batch_fault(self) -> str | None:
        """Return why rows do not decode together, or None after trying it."""
        config = self._model.config.get_text_config(decoder=True)
        if dependent_rope(config) is not None or getattr(config, "attention_chunk_size", None):
            return "its positions depend on the other rows"
        generator = torch.Generator().manual_seed(0)
        prompts = [
            torch.randint(min(MAX_ID, self._vocab_size), (n,), generator=generator).tolist()
            for n in LENGTHS
        ]
        alone, together = [[_Slot(list(ids)) for ids in prompts] for _ in range(2)]
        tolerance = 1e-3 if self._model.dtype == torch.float32 else 0.1
        try:
            for slot in (*alone, *together):
                self._logits([slot], len(slot.ids))
            for rows in (slice(0, 2), slice(0, 3), slice(1, 3)):  # one comes, and one goes
                for slot in (*alone[rows], *together[rows]):
                    slot.ids.append(slot.ids[0])
                expected = torch.cat([self._logits([slot], 1) for slot in alone[rows]])
                if differ(self._logits(together[rows], 1), expected, tolerance):
                    return "their answers would differ"
        except Exception as error:  # whatever an architecture raises
            if is_out_of_memory(error):
                raise
            return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        return None


def _gather(slots: list[_Slot]) -> dict[str, Any]:
    """Return the cache of a batch of these slots alone."""
    batch = slots[0].batch
    if batch is not None and batch.slots == slots:
        return batch.cache
    lengths = [slot.num_read for slot in slots]
    caches = [slot.cache() for slot in slots]
    if len(slots) == 1:
        return caches[0]
    return {name: join([own[name] for own in caches], lengths) for name in caches[0]}
