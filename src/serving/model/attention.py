"""The key/value cache, and attention over it: for one token of many rows, or many of one row."""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from src.model.core.attention import attend_in_steps, attend_under, mask_bias, sees
from src.serving.model.lazy_zeros import lazy_zeros


class KVCache:
    """One tensor for all layers and slots; keys and values of a token lie side by side.

    Pages of it that no token was written to cost no memory on a CPU.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_key_value_heads: int,
        head_size: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_slots = num_slots
        self.capacity = capacity
        self._num_written = [0] * num_slots
        self._heads = num_key_value_heads
        shape = (num_layers, num_slots, capacity, 2 * num_key_value_heads, head_size)
        self._data = lazy_zeros(shape, dtype, device)
        self._flat = self._data.flatten(1, 2).unbind(0)  # per layer (slots * capacity, heads, size)

    def places(self, layer: int) -> torch.Tensor:
        """Return the places of tokens in a layer (slots * capacity, keys' then values' heads, ...).

        Written through this view: one index names slot and position.
        """
        return self._flat[layer]

    def read(self, slots: slice, positions: slice) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Return (keys, values) as one view a layer (slots, heads, positions, head size)."""
        view = self._data[:, slots, positions].transpose(2, 3)
        return view[:, :, : self._heads].unbind(0), view[:, :, self._heads :].unbind(0)

    def layer(self, number: int) -> torch.Tensor:
        """Return a layer (slots, capacity, keys' then values' heads, head size)."""
        return self._data[number]

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Give the target slot the first tokens of the source slot."""
        self._data[:, target, :num_tokens] = self._data[:, source, :num_tokens]
        self.mark_written(target, num_tokens)

    def clear_tail(self, slot: int, num_tokens: int) -> None:
        """Clear what lies in a slot behind the prompt that is about to be read into it.

        What a row does not see yet is multiplied with zero, which does not make a number of what is
        none, and an adapter may have left that.
        """
        self._data[:, slot, num_tokens : self._num_written[slot]] = 0
        self._num_written[slot] = num_tokens

    def mark_written(self, slot: int, num_tokens: int) -> None:
        """Say that no more than so many tokens were written to a slot."""
        self._num_written[slot] = max(self._num_written[slot], num_tokens)


class DecodeAttention:
    """One new token in each of the first rows of the cache.

    A window is None, or how many of the last tokens a layer sees; `sinks` has those of each layer.
    """

    def __init__(
        self,
        cache: KVCache,
        *,
        num_rows: int,
        length: int,
        windows: frozenset[int | None],
        lengths: Sequence[int] | None,
        position: torch.Tensor,  # (rows,) the last token's
        scale: float | None = None,
        score_cap: float | None = None,
        sinks: Sequence[torch.Tensor | None] | None = None,
    ) -> None:
        self._scale, self._score_cap, self._sinks = scale, score_cap, sinks
        self._views = {}
        is_even = False
        if lengths is not None:
            # Rows of one length need no mask: the cache is cut to what they see.
            length, is_even = max(lengths), len(set(lengths)) == 1
        for window in windows:
            start = 0
            if window is not None and lengths is not None:
                start = max(0, min(lengths) - window)
            keys, values = cache.read(slice(num_rows), slice(start, length))
            mask = None
            if not is_even:
                read = torch.arange(start, length, device=position.device)
                seen = sees(position, read, window)[:, None, None]  # (rows, 1, 1, positions)
                if score_cap is None and sinks is None:
                    mask = mask_bias(seen, keys[0].dtype)
                else:
                    mask = mask_bias(seen)[:, None]
            self._views[window] = keys, values, mask

    def __call__(self, query: torch.Tensor, layer: int, window: int | None) -> torch.Tensor:
        """Return the outputs (rows, heads * head size) for queries (rows, heads, head size)."""
        keys, values, mask = self._views[window]
        key, value = keys[layer], values[layer]
        rows, heads, size = query.shape
        # The query heads that share a key head are its queries: no key is repeated.
        grouped = query.reshape(rows, key.shape[1], -1, size)
        sinks = None if self._sinks is None else self._sinks[layer]
        if self._score_cap is None and sinks is None:
            output = scaled_dot_product_attention(
                grouped, key, value, attn_mask=mask, scale=self._scale
            )
        else:
            scoring = self._scale, self._score_cap, sinks
            output = attend_in_steps(mask, grouped, key, value, *scoring)
        return output.reshape(rows, heads * size)


class SplitDecodeAttention:
    """What `DecodeAttention` computes, for rows of any lengths, which the device knows."""

    def __init__(
        self, cache: KVCache, position: torch.Tensor, *, scale: float | None = None
    ) -> None:
        self._cache, self._position, self._scale = cache, position, scale

    def __call__(self, query: torch.Tensor, layer: int, window: int | None) -> torch.Tensor:
        """Return the outputs (rows, heads * head size) for queries (rows, heads, head size)."""
        from src.serving.model.split_attention import attend_split

        data = self._cache.layer(layer)
        return attend_split(query, data, self._position, window, scale=self._scale).flatten(1)


def split_unsupported_reason(cache: KVCache, num_heads: int) -> str | None:
    """Return why `SplitDecodeAttention` cannot be used on this cache, or None after trying it."""
    data = cache.layer(0)
    if data.device.type != "cuda":
        return "it runs on GPUs"
    _, _, heads, size = data.shape
    tried = KVCache(
        num_layers=1, num_slots=2, num_key_value_heads=heads // 2, head_size=size, capacity=200,
        dtype=data.dtype, device=data.device,
    )  # fmt: skip
    generator = torch.Generator(data.device).manual_seed(0)
    tried.layer(0).normal_(generator=generator)
    query = torch.empty((2, num_heads, size), dtype=data.dtype, device=data.device)
    query.normal_(generator=generator)
    position = torch.tensor([150, 20], device=data.device)
    for window in (None, 64):
        plain = DecodeAttention(
            tried,
            num_rows=2,
            length=151,
            windows=frozenset({window}),
            lengths=None,
            position=position,
        )(query, 0, window)
        try:
            split = SplitDecodeAttention(tried, position)(query, 0, window)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if not (split - plain).float().norm() <= 0.02 * plain.float().norm():
            return "its results differ from those of one call"
    return None


class PrefillAttention:
    """Consecutive tokens of one slot, after those that the cache holds already."""

    def __init__(
        self,
        cache: KVCache,
        *,
        slot: int,
        start: int,
        stop: int,
        windows: frozenset[int | None],
        device: torch.device,
        scale: float | None = None,
        score_cap: float | None = None,
        sinks: Sequence[torch.Tensor | None] | None = None,
    ) -> None:
        self._scale, self._score_cap, self._sinks = scale, score_cap, sinks
        self._views = {}
        queries = torch.arange(start, stop, device=device)
        for window in windows:
            first = 0 if window is None else max(0, start + 1 - window)
            keys, values = cache.read(slice(slot, slot + 1), slice(first, stop))
            mask = None
            if start > 0 or (window is not None and stop > window):
                mask = sees(queries, torch.arange(first, stop, device=device), window)
            self._views[window] = keys, values, mask

    def __call__(self, query: torch.Tensor, layer: int, window: int | None) -> torch.Tensor:
        """Return the outputs (tokens, heads * head size) for queries (tokens, heads, head size)."""
        keys, values, mask = self._views[window]
        key, value = keys[layer], values[layer]
        num_sharing = query.shape[1] // key.shape[1]
        if num_sharing > 1 and mask is not None and query.is_cuda:
            # For shared heads under a mask there is only a kernel that holds all scores in memory.
            key, value = (x.repeat_interleave(num_sharing, 1) for x in (key, value))
        query = query.transpose(0, 1)[None]
        sinks = None if self._sinks is None else self._sinks[layer]
        output = attend_under(mask, query, key, value, self._scale, self._score_cap, sinks)
        return output[0].transpose(0, 1).flatten(1)
