"""Adapters in host memory: each is loaded once, and those in use are never evicted."""

import threading
from collections import Counter, OrderedDict
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
    warning: str | None = None
    """What is logged with each answer."""
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
        self._num_users: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._loading = KeyedLocks()
        self._num_hits = self._num_misses = 0

    @property
    def use(self) -> CacheUse:
        """How well the memory serves as a cache."""
        with self._lock:
            num_bytes = sum(self._sizes().values())
            return CacheUse(len(self._adapters), num_bytes, self._num_hits, self._num_misses)

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
            with self._lock:
                if adapter := self._adapters.get(weights.key):
                    self._num_hits += 1
                    self._num_users[weights.key] += 1
                    self._adapters.move_to_end(weights.key)
                    return adapter
            adapter = self._load(weights)
            with self._lock:
                self._num_misses += 1
                self._num_users[weights.key] += 1
                self._adapters[weights.key] = adapter
                self._evict()
            return replace(adapter, was_loaded=False)

    def release(self, adapter: Adapter) -> None:
        """Say that a request is done with its adapter."""
        if adapter.loaded is not None:
            with self._lock:
                self._num_users[adapter.loaded.key] -= 1
                self._evict()

    def _sizes(self) -> dict[str, int]:
        return {key: a.loaded.num_bytes for key, a in self._adapters.items() if a.loaded}

    def _evict(self) -> None:
        """Let idle adapters go while all together take too much."""
        sizes = self._sizes()
        total = sum(sizes.values())
        for key, num_bytes in sizes.items():
            if total > self._max_bytes and not self._num_users[key]:
                del self._adapters[key], self._num_users[key]
                total -= num_bytes
