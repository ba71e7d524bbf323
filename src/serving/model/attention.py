"""Attention over the key/value cache: for one token of many rows, or for many of a few rows."""

import itertools
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from src.model.core.attention import attend_in_steps, attend_under, mask_bias, sees
from src.serving.cache.kv_cache import BLOCK_SIZE, FIRST_PAGE, KVCache, LayerGroup, num_blocks_of
from src.serving.cache.layer_groups import group_layers

PADDING_BYTES = 2**16
"""A call of its own costs a row as much as reading so many bytes of a layer's cache."""


class _View(NamedTuple):
    """Which tokens some rows read in one call."""

    rows: slice
    pages: Tensor  # (tables of a group, rows * blocks)
    first_table: int
    tokens: slice
    """Of those in the blocks."""
    mask: Tensor | None


class DecodeAttention:
    """One new token in each of the first rows; `sinks` has those of each layer."""

    def __init__(
        self,
        cache: KVCache,
        *,
        lengths: Sequence[int] | int,
        position: Tensor,  # (rows,) the last token's
        scale: float | None = None,
        score_cap: float | None = None,
        sinks: Sequence[Tensor | None] | None = None,
    ) -> None:
        """`lengths` are those of the rows, 0 of an idle one, or one that none of them exceeds."""
        self._cache, self._position = cache, position
        self._scale, self._score_cap, self._sinks = scale, score_cap, sinks
        if isinstance(lengths, int):
            parts = [(slice(len(position)), None)]
        else:
            parts = [
                (rows, lengths[rows])
                for rows in even_rows(lengths, PADDING_BYTES // cache.token_bytes)
            ]
        longest = lengths if isinstance(lengths, int) else max(lengths)
        self._views = {
            group.window: [self._view(rows, known, longest, group) for rows, known in parts]
            for group in cache.groups
        }

    def __call__(self, query: Tensor, layer: int, window: int | None) -> Tensor:
        """Return the outputs (rows, heads * head size) for queries (rows, heads, head size)."""
        outputs = [self._attend(query, layer, view) for view in self._views[window]]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _view(
        self, rows: slice, lengths: Sequence[int] | None, longest: int, group: LayerGroup
    ) -> _View:
        start, stop, is_even, window = 0, longest, False, group.window
        if lengths is not None:
            known = [length for length in lengths if length] or [1]
            # Rows of one length need no mask: the cache is cut to what they see.
            stop, is_even = max(known), len(set(known)) == 1
            if window is not None:
                start = max(0, min(known) - window)
        first = start // BLOCK_SIZE
        pages = self._cache.tables[group.tables, rows, first : num_blocks_of(stop)].flatten(1)
        tokens = slice(start - first * BLOCK_SIZE, stop - first * BLOCK_SIZE)
        mask = None
        if not is_even:
            read = torch.arange(start, stop, device=pages.device)
            seen = sees(self._position[rows], read, window)[:, None, None]  # (rows, 1, 1, tokens)
            if self._score_cap is None and self._sinks is None:
                mask = mask_bias(seen, self._cache.dtype)
            else:
                mask = mask_bias(seen)[:, None]
        return _View(rows, pages, group.tables.start, tokens, mask)

    def _attend(self, query: Tensor, layer: int, view: _View) -> Tensor:
        query = query[view.rows]
        rows, heads, size = query.shape
        keys, values = _read(self._cache, layer, view, rows)
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


def _read(cache: KVCache, layer: int, view: _View, rows: int) -> tuple[Tensor, Tensor]:
    """Return keys and values (rows, heads, tokens, head size) of the blocks that rows read."""
    return cache.read(layer, view.pages[cache.table(layer) - view.first_table], rows)


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

        cache = self._cache
        inputs = query, cache.layer(layer), cache.tables[cache.table(layer)], self._position
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
    windows, lengths = (None, 64), (151, 21)
    tried = KVCache(
        layers=group_layers(windows), num_pages=2 * sum(map(num_blocks_of, lengths)), num_slots=2,
        max_seq_len=200, num_key_value_heads=heads // 2, head_size=size, dtype=data.dtype,
        device=data.device,
    )  # fmt: skip
    generator = torch.Generator(data.device).manual_seed(0)
    tried.layer(0).normal_(generator=generator)
    query = torch.empty((2, num_heads, size), dtype=data.dtype, device=data.device)
    query.normal_(generator=generator)
    pages = itertools.count(FIRST_PAGE)
    for group, (slot, length) in product(range(len(windows)), enumerate(lengths)):
        blocks = [(next(pages),) for _ in range(num_blocks_of(length))]
        tried.give(group, slot, blocks, length)
    position = torch.tensor(lengths, device=data.device) - 1
    whole = DecodeAttention(tried, lengths=lengths[0], position=position, sinks=sinks)
    in_parts = SplitDecodeAttention(tried, position, sinks=sinks)
    for layer, window in enumerate(windows):
        plain = whole(query, layer, window)
        try:
            split = in_parts(query, layer, window)
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
        scale: float | None = None,
        score_cap: float | None = None,
        sinks: Sequence[Tensor | None] | None = None,
    ) -> None:
        self._cache = cache
        self._scale, self._score_cap, self._sinks = scale, score_cap, sinks
        self._sizes = [span.stop - span.start for span in spans]
        self._views = {
            group.window: [self._view(span, group) for span in spans] for group in cache.groups
        }

    def __call__(self, query: Tensor, layer: int, window: int | None) -> Tensor:
        """Return the outputs (tokens, heads * head size) for queries (tokens, heads, head size)."""
        pairs = zip(query.split(self._sizes), self._views[window], strict=True)
        outputs = [self._attend(own, layer, view) for own, view in pairs]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _view(self, span: Span, group: LayerGroup) -> _View:
        (slot, start, stop), window = span, group.window
        begin = 0 if window is None else max(0, start + 1 - window)
        first = group.first_seen(start)
        pages = self._cache.tables[group.tables, slot, first : num_blocks_of(stop)]
        tokens = slice(begin - first * BLOCK_SIZE, stop - first * BLOCK_SIZE)
        mask = None
        if start > 0 or (window is not None and stop > window):
            queries = torch.arange(start, stop, device=pages.device)
            mask = sees(queries, torch.arange(begin, stop, device=pages.device), window)
        return _View(slice(slot, slot + 1), pages, group.tables.start, tokens, mask)

    def _attend(self, query: Tensor, layer: int, view: _View) -> Tensor:
        keys, values = _read(self._cache, layer, view, 1)
        key, value = keys[:, :, view.tokens], values[:, :, view.tokens]
        num_sharing = query.shape[1] // key.shape[1]
        if num_sharing > 1 and view.mask is not None and query.is_cuda:
            # For shared heads under a mask there is only a kernel that holds all scores in memory.
            key, value = (x.repeat_interleave(num_sharing, 1) for x in (key, value))
        query = query.transpose(0, 1)[None]
        scoring = self._scale, self._score_cap, self._sinks[layer] if self._sinks else None
        output = attend_under(view.mask, query, key, value, *scoring)
        return output[0].transpose(0, 1).flatten(1)
