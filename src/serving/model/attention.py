"""Attention over the key/value cache: for one token of many rows, or for many of a few rows."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from src.model.core.attention import attend_in_steps, attend_under, mask_bias, sees
from src.serving.cache.kv_cache import BLOCK_SIZE, KVCache, num_blocks_of

PADDING_BYTES = 2**16
"""A call of its own costs a row as much as reading so many bytes of a layer's cache."""


class _View(NamedTuple):
    """Which tokens some rows read in one call."""

    rows: slice
    blocks: Tensor
    tokens: slice
    """Of those in the blocks."""
    mask: Tensor | None


class DecodeAttention:
    """One new token in each of the first rows.

    A window is None, or how many of the last tokens a layer sees; `sinks` has those of each layer.
    """

    def __init__(
        self,
        cache: KVCache,
        *,
        lengths: Sequence[int] | int,
        windows: frozenset[int | None],
        position: Tensor,  # (rows,) the last token's
        scale: float | None = None,
        score_cap: float | None = None,
        sinks: Sequence[Tensor | None] | None = None,
    ) -> None:
        """`lengths` are those of the rows, 0 of an idle one, or one that none of them exceeds."""
        self._cache, self._position = cache, position
        self._scale, self._score_cap, self._sinks = scale, score_cap, sinks
        if isinstance(lengths, int):
            groups = [(slice(len(position)), None)]
        else:
            groups = [
                (rows, lengths[rows])
                for rows in even_rows(lengths, PADDING_BYTES // cache.token_bytes)
            ]
        longest = lengths if isinstance(lengths, int) else max(lengths)
        self._views = {
            window: [self._view(rows, known, longest, window) for rows, known in groups]
            for window in windows
        }

    def __call__(self, query: Tensor, layer: int, window: int | None) -> Tensor:
        """Return the outputs (rows, heads * head size) for queries (rows, heads, head size)."""
        outputs = [self._attend(query, layer, view) for view in self._views[window]]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _view(
        self, rows: slice, lengths: Sequence[int] | None, longest: int, window: int | None
    ) -> _View:
        start, stop, is_even = 0, longest, False
        if lengths is not None:
            known = [length for length in lengths if length] or [1]
            # Rows of one length need no mask: the cache is cut to what they see.
            stop, is_even = max(known), len(set(known)) == 1
            if window is not None:
                start = max(0, min(known) - window)
        first = start // BLOCK_SIZE
        blocks = self._cache.tables[rows, first : num_blocks_of(stop)].flatten()
        tokens = slice(start - first * BLOCK_SIZE, stop - first * BLOCK_SIZE)
        mask = None
        if not is_even:
            read = torch.arange(start, stop, device=blocks.device)
            seen = sees(self._position[rows], read, window)[:, None, None]  # (rows, 1, 1, tokens)
            if self._score_cap is None and self._sinks is None:
                mask = mask_bias(seen, self._cache.dtype)
            else:
                mask = mask_bias(seen)[:, None]
        return _View(rows, blocks, tokens, mask)

    def _attend(self, query: Tensor, layer: int, view: _View) -> Tensor:
        query = query[view.rows]
        rows, heads, size = query.shape
        keys, values = self._cache.read(layer, view.blocks, rows)
        key, value = keys[:, :, view.tokens], values[:, :, view.tokens]
        # The query heads that share a key head are its queries: no key is repeated.
        grouped = query.reshape(rows, key.shape[1], -1, size)
        if self._score_cap is None and self._sinks is None:
            output = scaled_dot_product_attention(
                grouped, key, value, attn_mask=view.mask, scale=self._scale
            )
        else:
            scoring = self._scale, self._score_cap, self._sinks[layer] if self._sinks else None
            output = attend_in_steps(view.mask, grouped, key, value, *scoring)
        return output.reshape(rows, heads * size)


def even_rows(lengths: Sequence[int], most_padding: int) -> list[slice]:
    """Return neighbouring rows that are read in one call, up to the longest of them.

    So many tokens for each row at most are read that it does not hold.
    """
    groups: list[slice] = []
    start = longest = total = 0
    for row, length in enumerate(lengths):
        longest, total = max(longest, length), total + length
        if (row + 1 - start) * (longest - most_padding) > total:
            groups.append(slice(start, row))
            start, longest, total = row, length, length
    return [*groups, slice(start, len(lengths))]


class SplitDecodeAttention:
    """What `DecodeAttention` computes, for rows of any lengths, which the device knows."""

    def __init__(
        self,
        cache: KVCache,
        position: Tensor,
        *,
        scale: float | None = None,
        sinks: Sequence[Tensor] | None = None,
    ) -> None:
        self._cache, self._position = cache, position
        self._scale, self._sinks = scale, sinks

    def __call__(self, query: Tensor, layer: int, window: int | None) -> Tensor:
        """Return the outputs (rows, heads * head size) for queries (rows, heads, head size)."""
        from src.serving.model.split_attention import attend_split

        inputs = query, self._cache.layer(layer), self._cache.tables, self._position
        sinks = None if self._sinks is None else self._sinks[layer]
        return attend_split(*inputs, window, scale=self._scale, sinks=sinks).flatten(1)


def split_unsupported_reason(
    cache: KVCache, num_heads: int, sinks: Sequence[Tensor] | None = None
) -> str | None:
    """Return why `SplitDecodeAttention` cannot be used on this cache, or None after trying it."""
    data = cache.layer(0)
    if data.device.type != "cuda":
        return "it runs on GPUs"
    _, _, heads, size = data.shape
    tried = KVCache(
        num_layers=1, num_blocks=num_blocks_of(151) + num_blocks_of(21), num_slots=2,
        max_seq_len=200, num_key_value_heads=heads // 2, head_size=size, dtype=data.dtype,
        device=data.device,
    )  # fmt: skip
    generator = torch.Generator(data.device).manual_seed(0)
    tried.layer(0).normal_(generator=generator)
    query = torch.empty((2, num_heads, size), dtype=data.dtype, device=data.device)
    query.normal_(generator=generator)
    lengths = (151, 21)
    blocks = iter(range(len(data)))
    for slot, length in enumerate(lengths):
        tried.give(slot, [next(blocks) for _ in range(num_blocks_of(length))], length)
    position = torch.tensor(lengths, device=data.device) - 1
    for window in (None, 64):
        plain = DecodeAttention(
            tried, lengths=lengths[0], windows=frozenset({window}), position=position, sinks=sinks
        )(query, 0, window)
        try:
            split = SplitDecodeAttention(tried, position, sinks=sinks)(query, 0, window)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if not (split - plain).float().norm() <= 0.02 * plain.float().norm():
            return "its results differ from those of one call"
    return None


class Span(NamedTuple):
    """Consecutive tokens of a slot, after those that the cache holds already."""

    slot: int
    start: int
    stop: int


class PrefillAttention:
    """The tokens of some spans, end to end."""

    def __init__(
        self,
        cache: KVCache,
        spans: Sequence[Span],
        *,
        windows: frozenset[int | None],
        scale: float | None = None,
        score_cap: float | None = None,
        sinks: Sequence[Tensor | None] | None = None,
    ) -> None:
        self._cache = cache
        self._scale, self._score_cap, self._sinks = scale, score_cap, sinks
        self._sizes = [span.stop - span.start for span in spans]
        self._views = {window: [self._view(span, window) for span in spans] for window in windows}

    def __call__(self, query: Tensor, layer: int, window: int | None) -> Tensor:
        """Return the outputs (tokens, heads * head size) for queries (tokens, heads, head size)."""
        pairs = zip(query.split(self._sizes), self._views[window], strict=True)
        outputs = [self._attend(own, layer, view) for own, view in pairs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _view(self, span: Span, window: int | None) -> _View:
        slot, start, stop = span
        begin = 0 if window is None else max(0, start + 1 - window)
        first = begin // BLOCK_SIZE
        blocks = self._cache.tables[slot, first : num_blocks_of(stop)]
        tokens = slice(begin - first * BLOCK_SIZE, stop - first * BLOCK_SIZE)
        mask = None
        if start > 0 or (window is not None and stop > window):
            queries = torch.arange(start, stop, device=blocks.device)
            mask = sees(queries, torch.arange(begin, stop, device=blocks.device), window)
        return _View(slice(slot, slot + 1), blocks, tokens, mask)

    def _attend(self, query: Tensor, layer: int, view: _View) -> Tensor:
        keys, values = self._cache.read(layer, view.blocks, 1)
        key, value = keys[:, :, view.tokens], values[:, :, view.tokens]
        num_sharing = query.shape[1] // key.shape[1]
        if num_sharing > 1 and view.mask is not None and query.is_cuda:
            # For shared heads under a mask there is only a kernel that holds all scores in memory.
            key, value = (x.repeat_interleave(num_sharing, 1) for x in (key, value))
        query = query.transpose(0, 1)[None]
        scoring = self._scale, self._score_cap, self._sinks[layer] if self._sinks else None
        output = attend_under(view.mask, query, key, value, *scoring)
        return output[0].transpose(0, 1).flatten(1)
