"""Weights out of a cache, for tests that only look at what it returns."""

from typing import Any

from src.weights.cache.cache import Weights, WeightsCache


def get(cache: WeightsCache, source: str, **values: Any) -> Weights:
    """Return the weights that a source names; they may be evicted from now on."""
    with cache.hold(source, **values) as weights:
        return weights
