"""Adapters in host memory: each is loaded once, and those in use are never evicted."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from src.serving.lora.weights import LoadedAdapter
from src.weights.adapter.manifest import Manifest
from src.weights.cache.cache import Weights, WeightsCache
from src.weights.cache.cache_use import CacheUse
from src.weights.cache.keyed_locks import KeyedLocks
from src.weights.download.deadline import CancelToken, never

MAX_BYTES = 4 * 2**30


@dataclass(frozen=True, eq=False)
class Adapter:
    """Fine-tuned weights in memory, and how they want to be spoken to."""

    loaded: LoadedAdapter | None
    manifest: Manifest
    was_loaded: bool = True
    """Whether they were in memory before they were asked for."""


BARE = Adapter(None, Manifest())


class AdapterStore:
    """Known by content, bounded by bytes, the least recently used one goes first."""

    def __init__(
        self,
        cache: WeightsCache,
        load: Callable[[Weights], Adapter],
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._cache, self._load, self._max_bytes = cache, load, max_bytes
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._num_users: dict[str, int] = {}
        self._num_hits = self._num_misses = 0
        self._lock = threading.Lock()
        self._loading = KeyedLocks()

    def acquire(
        self, source: str, *, local_root: Path | None, is_canceled: CancelToken = never
    ) -> Adapter:
        """Return the weights a source names, kept until they are released.

        Raises UserError for weights that cannot be had, or are no longer wanted when they are not
        there yet; nothing of them is kept.
        """
        with (
            self._cache.hold(source, local_root=local_root, is_canceled=is_canceled) as weights,
            self._loading.hold(weights.key),
        ):
            known = self._taken(weights.key)
            if known is not None:
                self._num_hits += 1
                return known
            adapter = self._load(weights)
            with self._lock:
                self._adapters[weights.key] = adapter
                self._num_misses += 1
                self._take(weights.key)
            return replace(adapter, was_loaded=False)

    def release(self, adapter: Adapter) -> None:
        """Say that a request is done with its adapter."""
        if adapter.loaded is None:
            return
        with self._lock:
            self._num_users[adapter.loaded.key] -= 1
            self._make_room()

    @property
    def num_bytes(self) -> int:
        """What all adapters take in memory."""
        with self._lock:
            return self._sum()

    def use(self) -> CacheUse:
        """Return how well the store serves."""
        with self._lock:
            return CacheUse(len(self._adapters), self._sum(), self._num_hits, self._num_misses)

    def _taken(self, key: str) -> Adapter | None:
        with self._lock:
            adapter = self._adapters.get(key)
            if adapter is not None:
                self._take(key)
            return adapter

    def _take(self, key: str) -> None:
        self._num_users[key] = self._num_users.get(key, 0) + 1
        self._adapters.move_to_end(key)
        self._make_room()

    def _sum(self) -> int:
        return sum(a.loaded.num_bytes for a in self._adapters.values() if a.loaded is not None)

    def _make_room(self) -> None:
        total = self._sum()
        for key, adapter in list(self._adapters.items()):
            if total <= self._max_bytes:
                return
            if not self._num_users[key]:
                del self._adapters[key], self._num_users[key]
                total -= adapter.loaded.num_bytes if adapter.loaded is not None else 0
