"""The forward pass of a batch: parts of prompts into the KV cache, and a token for each row."""

from collections.abc import Callable, Sequence
from ctypes import CDLL
from typing import Any

import torch

from src.model.core.decoder import Decoder
from src.serving.cache.block_tables import BlockTables
from src.serving.cache.kv_cache import BLOCK_SIZE, SINK_PLACE, KVCache, LayerGroups, num_blocks_of
from src.serving.cache.layer_groups import group_layers
from src.serving.cache.states import States
from src.serving.lora.rows import use_kernel
from src.serving.lora.slots import LoraSlots
from src.serving.lora.stacked import LoraBatch
from src.serving.model.attention import (
    DecodeAttention,
    PrefillAttention,
    Span,
    SplitDecodeAttention,
    split_unsupported_reason,
)
from src.serving.model.chunk import Chunk
from src.serving.model.compiled import compile_between
from src.serving.model.forward import CachedDecoder
from src.serving.model.mix_states import DecodeStates, PrefillStates
from src.serving.model.transformers_model import TransformersRunner
from src.serving.native.decode_step import DecodeStep, open_step
from src.transfer import to_device

SMALLEST_BUCKET = 256


class ModelRunner:
    """Our own forward pass over a paged cache, with the adapters of many rows at once.

    With `has_fixed_shapes` a step is the same sequence of kernels on the same memory for every
    length in a bucket, as a captured step must be; with `is_compiled` the layers are.
    """

    is_static = True
    cache_kind: Callable[..., KVCache] = KVCache
    lora_kind: Callable[..., LoraSlots] = LoraSlots

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_slots: int,
        num_pages: int,
        max_seq_len: int,
        num_adapters: int,
        adapter_bytes: int,
        has_fixed_shapes: bool,
        is_compiled: bool = False,
        library: CDLL | None = None,
        most_read: int = 0,
    ) -> None:
        """`library` is the compiled step of a CPU; a pass reads at most `most_read` tokens."""
        self._decoder, self._max_seq_len = decoder, max_seq_len
        self._device, self._has_fixed_shapes = decoder.device, has_fixed_shapes
        switches = decoder.switches
        cache = self._cache = self.cache_kind(
            layers=groups_of(decoder),
            num_pages=num_pages,
            num_slots=num_slots,
            max_seq_len=max_seq_len,
            num_key_value_heads=decoder.num_key_value_heads,
            head_size=switches.head_size,
            dtype=decoder.dtype,
            device=self._device,
        )
        self._states: States | None = None
        if decoder.deltas:
            kind = {"dtype": decoder.dtype, "device": self._device}
            self._states = States(decoder.deltas, num_slots=num_slots, **kind)
        self.can_speculate = self._states is None
        """Whether tokens that were read can be taken back."""
        self.kv_cache = BlockTables(
            cache, most_read=most_read, shares_prefixes=self._states is None
        )
        # Captured steps read lengths on the device, where there is a kernel that does.
        reason = split_unsupported_reason(cache, decoder.num_heads, decoder.sinks)
        if switches.score_cap is not None:
            reason = decoder.attention_reason
        self._is_split = has_fixed_shapes and reason is None
        if has_fixed_shapes and reason:
            print(f"decoding reads the cache in buckets of lengths: {reason}", flush=True)
        decoder.grow(max_seq_len)
        length = switches.short_length or max_seq_len
        self.short_length = length if length < max_seq_len else 0
        """Longer texts have other keys and values for the same tokens; where it is 0, none have."""
        self._layers = CachedDecoder(decoder, cache)
        projections = [part for layer in decoder.kinds for part in layer.projections]
        if reason := use_kernel(projections, decoder.like):
            print(f"decoding copies the pages of adapters: {reason}", flush=True)
        has_kernel = reason is None
        if is_compiled and (reason := compile_between(self._layers, with_adapters=has_kernel)):
            print(f"the layers are not compiled: {reason}", flush=True)
            is_compiled = False
        self.lora = self.lora_kind(
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
        self._slots = torch.arange(num_slots, device=self._device)
        self._few_rows: DecodeStep | None = None
        if library is not None and not has_fixed_shapes:
            self._open_step(library)

    def prefill(self, chunks: Sequence[Chunk]) -> torch.Tensor | None:
        """Read tokens into slots, in one pass; return the scores that are wanted of them.

        They are in the order of the chunks (number, vocabulary).
        """
        read = [token for chunk in chunks for token in chunk.tokens()]
        is_step = len(read) <= self.most_mixed
        if is_step:
            read.sort(key=lambda token: not token.is_scored)  # it scores the first ones
        numbers = torch.tensor([token[:4] for token in read]).t().contiguous()
        tokens, slots, positions, text_lengths = to_device(numbers, self._device).unbind(0)
        scored = [row for row, token in enumerate(read) if token.is_scored]
        lora_slots = [token.lora_slot for token in read]
        lora = self.lora.of_tokens(lora_slots)
        if is_step:
            lengths = [token.position + 1 for token in read]
            tables = self._cache.tables[:, slots, : num_blocks_of(max(lengths))]
            options = {"num_scores": len(scored), "text_lengths": text_lengths}
            scores = self._step(tokens, positions, lengths, tables, lora, **options)
            return scores if scored else None
        spans = [Span(chunk.slot, chunk.start, chunk.stop) for chunk in chunks]
        attention = PrefillAttention(self._cache, spans, **self._scoring)
        states = self._states and PrefillStates(self._states, spans, self._device)
        places = self._cache.places_of(slots, positions)
        hidden = self._layers.hidden(
            tokens, positions, places, attention, states, lora, text_lengths
        )
        if not scored:
            return None
        rows = to_device(torch.tensor(scored), self._device)
        scored_lora = self.lora.of_tokens([lora_slots[row] for row in scored])
        return self._scores(hidden.index_select(0, rows), scored_lora)

    def decode(
        self,
        tokens: torch.Tensor,  # (rows,)
        positions: torch.Tensor,  # (rows,), 0 where a row is idle
        lengths: list[int],
        lora: LoraBatch | None,
    ) -> torch.Tensor:
        """Read one token in each row and return the next scores (rows, vocabulary).

        A length counts the tokens of a row with this one; it is 0 where the row is idle.
        """
        if len(tokens) <= self.most_mixed:
            tables = self._cache.tables[:, : len(tokens)]
            return self._step(tokens, positions, lengths, tables, lora, num_scores=len(tokens))
        if self._is_split:
            scale, sinks = self._scoring["scale"], self._scoring["sinks"]
            attention = SplitDecodeAttention(self._cache, positions, scale=scale, sinks=sinks)
        else:
            attention = DecodeAttention(
                self._cache,
                lengths=self.length_bucket(max(lengths)) if self._has_fixed_shapes else lengths,
                position=positions,
                **self._scoring,
            )
        if self._has_fixed_shapes:
            places = self._cache.places_of(self._slots[: len(tokens)], positions)
            places.masked_fill_(positions == 0, SINK_PLACE)
        else:
            idle = [SINK_PLACE] * len(self._cache.tables)
            held = [
                self._cache.place(slot, length - 1) if length else idle
                for slot, length in enumerate(lengths)
            ]
            places = to_device(torch.tensor(list(zip(*held, strict=True))), self._device)
        states = self._states and DecodeStates(self._states, positions)
        hidden = self._layers.hidden(tokens, positions, places, attention, states, lora)
        return self._scores(hidden, lora)

    @property
    def most_mixed(self) -> int:
        """How many tokens of prompts and rows one pass reads; 0 where rows take their own."""
        return 0 if self._few_rows is None else self._few_rows.most_rows

    def _step(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        lengths: Sequence[int],
        tables: torch.Tensor,  # (tables, rows, blocks)
        lora: LoraBatch | None,
        **options: Any,
    ) -> torch.Tensor:
        assert self._few_rows is not None
        return self._few_rows(tokens, positions, lengths, tables, BLOCK_SIZE, lora, **options)

    def _open_step(self, library: CDLL) -> None:
        """Use the compiled step, where it knows the decoder and computes what plain steps do."""
        step = open_step(library, self._decoder, self._cache)
        if isinstance(step, str):
            return
        self.kv_cache.grow(0, 3)
        trials = []
        for self._few_rows in (None, step):
            chunks = [Chunk(0, [1 + position], position, None, 1) for position in range(3)]
            scores = [self.prefill([chunk]) for chunk in chunks]
            trials.append(torch.cat([one for one in scores if one is not None]))
        self.kv_cache.release(0, is_valid=False)
        plain, compiled = trials
        # Of three tokens: plain steps in 16 bits lose one whose states are extreme.
        off = ((compiled - plain).norm(dim=1) / plain.norm(dim=1)).median()
        if not off <= step.tolerance:
            print("decoding takes plain steps: the compiled one differs from them", flush=True)
            self._few_rows = None

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


def groups_of(decoder: Decoder) -> LayerGroups:
    """Return the groups of the layers that have keys and values."""
    return group_layers([layer.window for layer in decoder.layers if layer.delta is None])
