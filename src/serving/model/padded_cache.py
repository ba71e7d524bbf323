"""What transformers keeps of several rows as one cache, padded on the left, and apart again."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

LAYERS = {
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
}
"""Whose contents are known: keys and values by position, or states of a row."""


def join(caches: Sequence[Any], lengths: Sequence[int]) -> Any:
    """Return the caches of rows that have read so many tokens each as that of a batch.

    Raises TypeError for a cache whose contents are not known.
    """
    whole = _copy(caches[0])
    for number, layer in enumerate(whole.layers):
        parts = [cache.layers[number] for cache in caches]
        if any(type(part) is not type(layer) or type(part) not in LAYERS for part in parts):
            raise TypeError(f"its cache has a {type(layer).__name__}")
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            _set_length(layer, max(lengths))
            num_kept = max(part.keys.shape[-2] for part in parts)
            layer.keys = torch.cat([_padded(part.keys, num_kept) for part in parts])
            layer.values = torch.cat([_padded(part.values, num_kept) for part in parts])
        if isinstance(layer, LinearAttentionLayer):
            for name in ("conv_states", "recurrent_states"):
                states = [getattr(part, name) for part in parts]
                setattr(layer, name, {k: _joined([own[k] for own in states]) for k in states[0]})
    return whole


def has_positions(cache: Any) -> bool:
    """Return whether a cache is padded: whether it holds tokens, and not states alone."""
    return any(isinstance(layer, DynamicLayer) for layer in cache.layers)


def take(cache: Any, row: int, length: int) -> Any:
    """Return the cache of one row of a batch, which has read so many tokens."""
    own = _copy(cache)
    for layer in own.layers:
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            _set_length(layer, length)
            layer.keys, layer.values = (
                _last(layer.keys, row, length),
                _last(layer.values, row, length),
            )
        if isinstance(layer, LinearAttentionLayer):
            for name in ("conv_states", "recurrent_states"):
                states = getattr(layer, name).items()
                parts = {k: None if x is None else x[row : row + 1].clone() for k, x in states}
                setattr(layer, name, parts)
    return own


def _copy(cache: Any) -> Any:
    """Return a cache with layers of its own, over the same tensors."""
    if not isinstance(cache, DynamicCache):
        raise TypeError(f"it keeps a {type(cache).__name__}")
    whole = copy(cache)
    whole.layers = [copy(layer) for layer in cache.layers]
    return whole


def _set_length(layer: DynamicLayer, length: int) -> None:
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = length


def _padded(x: Tensor, length: int) -> Tensor:
    """Return keys or values (1, heads, length, size) with zeros before what is there."""
    return pad(x, (0, 0, length - x.shape[-2], 0))


def _last(x: Tensor | None, row: int, length: int) -> Tensor:
    """Return up to so many last keys or values (1, heads, length, size) of a row."""
    assert x is not None
    return x[row : row + 1, :, max(0, x.shape[-2] - length) :]


def _joined(states: Sequence[Tensor | None]) -> Tensor | None:
    there = [state for state in states if state is not None]
    return torch.cat(there) if there else None
