"""The base model as the engine sees it: slots that read prompts and step together."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from src.serving.lora.batch import LoraBatch, MixedAdapters, SharedAdapter, others_of
from src.serving.lora.slots import LoraSlots
from src.serving.lora.weights import LoadedAdapter
from src.serving.model.attention import DecodeAttention, PrefillAttention
from src.serving.model.kv_cache import KVCache
from src.serving.model.llama import LlamaModel
from src.weights.cache.cache_use import CacheUse

SMALLEST_BUCKET = 256


class ModelRunner(Protocol):
    """What the engine needs of a base model."""

    is_static: bool
    """Whether a step is a fixed sequence of kernels, and slots can be copied."""

    def acquire(self, adapter: LoadedAdapter) -> int | None:
        """Bring an adapter onto the device and return its slot; None while there is no room."""
        ...

    def release(self, lora_slot: int) -> None:
        """Say that one request needs the adapter at this lora_slot no more."""
        ...

    def prefill(
        self, slot: int, ids: Sequence[int], start: int, lora_slot: int | None, *, num_scores: int
    ) -> torch.Tensor | None:
        """Read tokens into a slot; return the scores after so many last ones (num, vocabulary).

        None where none are wanted; only a static model is asked for more than one.
        """
        ...

    def set_rows(self, lora_slots: Sequence[int | None], is_active: Sequence[bool]) -> None:
        """Say which adapter each row has from now on."""
        ...

    def plan(self, lengths: Sequence[int]) -> tuple[Any, ...]:
        """Return what decides the shapes of the next step."""
        ...

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        """Read one token in each row and return the next scores (rows, vocabulary)."""
        ...

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Give the target slot what the source slot knows of its first tokens."""
        ...

    def clear_tail(self, slot: int, num_tokens: int) -> None:
        """Say that a prompt of so many tokens is about to be read into a slot."""
        ...

    def mark_written(self, slot: int, num_tokens: int) -> None:
        """Say that a slot's request is over, which has written no more than so many tokens."""
        ...

    def adapter_use(self) -> CacheUse:
        """Return how well the adapters on the device serve."""
        ...


class LlamaRunner:
    """Our own forward pass over a static cache, with the adapters of many rows at once."""

    is_static = True

    def __init__(
        self,
        decoder: LlamaModel,
        *,
        num_slots: int,
        max_seq_len: int,
        num_adapters: int,
        adapter_bytes: int,
    ) -> None:
        self._decoder, self._max_seq_len = decoder, max_seq_len
        self._device = decoder.device
        # Idle rows write to one place more than the context has, which is never read.
        self._cache = KVCache(
            num_layers=decoder.num_layers,
            num_slots=num_slots,
            num_key_value_heads=decoder.num_key_value_heads,
            head_size=decoder.head_size,
            capacity=max_seq_len + 1,
            dtype=decoder.dtype,
            device=self._device,
        )
        decoder.rotary.grow(max_seq_len + 1)
        self._adapters = LoraSlots(
            decoder.projections,
            num_slots=num_adapters,
            like=decoder.like,
            max_bytes=adapter_bytes,
        )
        self._first_places = torch.arange(num_slots, device=self._device) * (max_seq_len + 1)
        self._row_adapters: LoraBatch | None = None
        # What a captured step reads: the same memory whatever the rows are.
        self._shared = torch.zeros(1, dtype=torch.long, device=self._device)
        self._others = torch.ones(
            (num_slots, num_adapters, 1), dtype=torch.bool, device=self._device
        )
        self._plan: tuple[Any, ...] = ()
        self.acquire, self.release = self._adapters.acquire, self._adapters.release
        self.copy, self.adapter_use = self._cache.copy, self._adapters.use
        self.clear_tail, self.mark_written = self._cache.clear_tail, self._cache.mark_written

    def prefill(
        self, slot: int, ids: Sequence[int], start: int, lora_slot: int | None, *, num_scores: int
    ) -> torch.Tensor | None:
        """Read tokens into a slot; return the scores after so many last ones (num, vocabulary)."""
        stop = start + len(ids)
        positions = torch.arange(start, stop, device=self._device)
        attention = PrefillAttention(
            self._cache,
            slot=slot,
            start=start,
            stop=stop,
            windows=self._decoder.windows,
            device=self._device,
        )
        adapters = None if lora_slot is None else SharedAdapter(self._adapters.stacks, lora_slot)
        hidden = self._decoder.hidden(
            torch.tensor(ids, device=self._device),
            positions,
            self._cache,
            positions + slot * self._cache.capacity,
            attention,
            adapters,
        )
        return self._decoder.logits(hidden[-num_scores:], adapters) if num_scores else None

    def set_rows(self, lora_slots: Sequence[int | None], is_active: Sequence[bool]) -> None:
        """Say which adapter each row has from now on."""
        used = {lora_slot for lora_slot, is_on in zip(lora_slots, is_active, strict=True) if is_on}
        stacks, is_gpu = self._adapters.stacks, self._device.type == "cuda"
        if used <= {None}:
            self._row_adapters, self._plan = None, ()
        elif len(used) == 1:
            (lora_slot,) = used
            assert lora_slot is not None
            if is_gpu:
                self._shared.fill_(lora_slot)
            self._row_adapters = SharedAdapter(stacks, self._shared if is_gpu else lora_slot)
            self._plan = ("shared", self._adapters.version)
        else:
            # As many adapter slots as there are adapters, rounded up: few graphs.
            highest = max(lora_slot for lora_slot in used if lora_slot is not None) + 1
            width = highest if not is_gpu else min(1 << (highest - 1).bit_length(), 2**30)
            width = min(width, self._adapters.num_slots)
            others = others_of(lora_slots, width, self._device)
            if is_gpu:
                others = self._others[: len(lora_slots), :width].copy_(others)
            self._row_adapters = MixedAdapters(stacks, others)
            self._plan = ("mixed", width, self._adapters.version)

    def plan(self, lengths: Sequence[int]) -> tuple[Any, ...]:
        """Return what decides the shapes of the next step."""
        return (*self._plan, bucket_of(max(lengths), self._max_seq_len))

    def decode(
        self, tokens: torch.Tensor, positions: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        """Read one token in each row and return the next scores (rows, vocabulary)."""
        is_gpu = self._device.type == "cuda"
        attention = DecodeAttention(
            self._cache,
            num_rows=len(tokens),
            length=bucket_of(max(lengths), self._max_seq_len),
            windows=self._decoder.windows,
            lengths=None if is_gpu else lengths,
            position=positions,
        )
        hidden = self._decoder.hidden(
            tokens,
            positions,
            self._cache,
            self._first_places[: len(tokens)] + positions,
            attention,
            self._row_adapters,
        )
        return self._decoder.logits(hidden, self._row_adapters)


def bucket_of(length: int, max_seq_len: int) -> int:
    """Return how much of the cache a captured step reads: twice as much at each bucket."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, max_seq_len)
