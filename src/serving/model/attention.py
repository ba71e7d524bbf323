"""Attention over the key/value cache, for one step of many rows or many tokens of one row."""

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from src.serving.model.kv_cache import KVCache


class DecodeAttention:
    """One new token in each of the first rows of the cache.

    A window is None, or how many of the last tokens a layer sees.
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
    ) -> None:
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
                sees = _sees(position, start, length, window)
                # Not minus infinity: an idle row that sees nothing must stay finite.
                lowest = torch.finfo(keys[0].dtype).min / 2
                mask = torch.where(sees, 0.0, lowest).to(keys[0].dtype)
            self._views[window] = keys, values, mask

    def __call__(self, query: torch.Tensor, layer: int, window: int | None) -> torch.Tensor:
        """Return the outputs (rows, heads * head size) for queries (rows, heads, head size)."""
        keys, values, mask = self._views[window]
        key, value = keys[layer], values[layer]
        rows, heads, size = query.shape
        # The query heads that share a key head are its queries: no key is repeated.
        grouped = query.reshape(rows, key.shape[1], -1, size)
        output = scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
        return output.reshape(rows, heads * size)


def _sees(position: torch.Tensor, start: int, stop: int, window: int | None) -> torch.Tensor:
    """Return which of the positions from start to stop each row sees (rows, 1, 1, positions)."""
    distance = position[:, None] - torch.arange(start, stop, device=position.device)
    sees = distance >= 0
    if window is not None:
        sees &= distance < window
    return sees[:, None, None]


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
    ) -> None:
        self._views = {}
        queries = torch.arange(start, stop, device=device)
        for window in windows:
            first = 0 if window is None else max(0, start + 1 - window)
            keys, values = cache.read(slice(slot, slot + 1), slice(first, stop))
            mask = None
            if start > 0 or (window is not None and stop > window):
                seen = torch.arange(first, stop, device=device)
                mask = seen <= queries[:, None]
                if window is not None:
                    mask &= seen > queries[:, None] - window
            self._views[window] = keys, values, mask

    def __call__(self, query: torch.Tensor, layer: int, window: int | None) -> torch.Tensor:
        """Return the outputs (tokens, heads * head size) for queries (tokens, heads, head size)."""
        keys, values, mask = self._views[window]
        key, value = keys[layer], values[layer]
        num_sharing = query.shape[1] // key.shape[1]
        if num_sharing > 1 and mask is not None and query.is_cuda:
            # For shared heads under a mask there is only a kernel that holds all scores in memory.
            key, value = (x.repeat_interleave(num_sharing, 1) for x in (key, value))
            num_sharing = 1
        output = scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=num_sharing > 1,
        )
        return output[0].transpose(0, 1).flatten(1)
