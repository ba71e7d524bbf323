"""The forward pass of a batch: prompts into slots of the KV cache, and a token for each row."""

import torch

from src.model.core.decoder import Decoder
from src.serving.lora.rows import use_kernel
from src.serving.lora.slots import LoraSlots
from src.serving.lora.stacked import LoraBatch
from src.serving.model.attention import (
    DecodeAttention,
    KVCache,
    PrefillAttention,
    SplitDecodeAttention,
    split_unsupported_reason,
)
from src.serving.model.compiled import compile_between
from src.serving.model.forward import CachedDecoder
from src.serving.model.transformers_model import TransformersRunner

SMALLEST_BUCKET = 256


class ModelRunner:
    """Our own forward pass over a static cache, with the adapters of many rows at once.

    With `has_fixed_shapes` a step is the same sequence of kernels on the same memory for every
    length in a bucket, as a captured step must be; with `is_compiled` the layers are.
    """

    is_static = True

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_slots: int,
        max_seq_len: int,
        num_adapters: int,
        adapter_bytes: int,
        has_fixed_shapes: bool,
        is_compiled: bool = False,
    ) -> None:
        self._decoder, self._max_seq_len = decoder, max_seq_len
        self._device, self._has_fixed_shapes = decoder.device, has_fixed_shapes
        switches = decoder.switches
        self._windows = frozenset(switches.windows)
        # Idle rows write to one position more than the context has, which is never read.
        self.kv_cache = KVCache(
            num_layers=len(decoder.layers),
            num_slots=num_slots,
            num_key_value_heads=decoder.num_key_value_heads,
            head_size=switches.head_size,
            capacity=max_seq_len + 1,
            dtype=decoder.dtype,
            device=self._device,
        )
        # Captured steps read lengths on the device, where there is a kernel that does.
        reason = split_unsupported_reason(self.kv_cache, decoder.num_heads)
        reason = decoder.attention_reason or reason
        self._is_split = has_fixed_shapes and reason is None
        if has_fixed_shapes and reason:
            print(f"decoding reads the cache in buckets of lengths: {reason}", flush=True)
        decoder.grow(max_seq_len + 1)
        self._layers = CachedDecoder(decoder, self.kv_cache)
        if reason := use_kernel(decoder.layers[0].projections, decoder.like):
            print(f"decoding copies the pages of adapters: {reason}", flush=True)
        has_kernel = reason is None
        if is_compiled and (reason := compile_between(self._layers, with_adapters=has_kernel)):
            print(f"the layers are not compiled: {reason}", flush=True)
            is_compiled = False
        self.lora = LoraSlots(
            decoder.projections,
            max_slots=num_adapters,
            max_rows=num_slots,
            like=decoder.like,
            max_bytes=adapter_bytes,
            has_fixed_shapes=has_fixed_shapes or is_compiled,
            has_kernel=has_kernel,
        )
        self._scoring = {
            "scale": switches.scale,
            "score_cap": switches.score_cap,
            "sinks": decoder.sinks,
        }
        self._slot_starts = torch.arange(num_slots, device=self._device) * (max_seq_len + 1)

    def prefill(
        self, slot: int, ids: list[int], start: int, lora_slot: int | None, *, num_scores: int
    ) -> torch.Tensor | None:
        """Read tokens into a slot; return the scores after so many last ones (num, vocabulary)."""
        stop = start + len(ids)
        self.kv_cache.mark_written(slot, stop)
        positions = torch.arange(start, stop, device=self._device)
        attention = PrefillAttention(
            self.kv_cache,
            slot=slot,
            start=start,
            stop=stop,
            windows=self._windows,
            device=self._device,
            **self._scoring,
        )
        lora = None if lora_slot is None else self.lora.of_slot(lora_slot)
        tokens = torch.tensor(ids, device=self._device)
        places = positions + slot * self.kv_cache.capacity
        hidden = self._layers.hidden(tokens, positions, places, attention, lora)
        return self._scores(hidden[-num_scores:], lora) if num_scores else None

    def decode(
        self,
        tokens: torch.Tensor,  # (rows,)
        positions: torch.Tensor,  # (rows,)
        lengths: list[int],
        lora: LoraBatch | None,
    ) -> torch.Tensor:
        """Read one token in each row and return the next scores (rows, vocabulary).

        A length counts the tokens of a row with this one; it is 0 where the row is idle.
        """
        if self._is_split:
            attention = SplitDecodeAttention(self.kv_cache, positions, scale=self._scoring["scale"])
        else:
            attention = DecodeAttention(
                self.kv_cache,
                num_rows=len(tokens),
                length=self.length_bucket(max(lengths)),
                windows=self._windows,
                lengths=None if self._has_fixed_shapes else [n for n in lengths if n],
                position=positions,
                **self._scoring,
            )
        places = self._slot_starts[: len(tokens)] + positions
        hidden = self._layers.hidden(tokens, positions, places, attention, lora)
        return self._scores(hidden, lora)

    def _scores(self, hidden: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        return self._decoder.scores(hidden, lora.update(self._decoder.head) if lora else None)

    def length_bucket(self, length: int) -> int:
        """Return how much of the cache a captured step reads, of rows up to this length."""
        return self._max_seq_len if self._is_split else bucket_of(length, self._max_seq_len)


Runner = ModelRunner | TransformersRunner


def bucket_of(length: int, max_seq_len: int) -> int:
    """Return the power of two, or the context, that a length is rounded up to."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket *= 2
    return min(bucket, max_seq_len)
