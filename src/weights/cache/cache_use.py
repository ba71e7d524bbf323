"""How well a cache serves."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheUse:
    """What a cache holds now, and how often it held what was asked for."""

    entries: int
    bytes: int
    hits: int
    misses: int
