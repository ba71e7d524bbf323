"""One lock for each name, so that work on one never waits for work on another."""

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class KeyedLocks:
    """Locks that exist only while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, name: Hashable) -> Iterator[None]:
        """Be the only one with this name."""
        with self._guard:
            lock, num_users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = lock, num_users + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, num_users = self._locks[name]
                if num_users == 1:
                    del self._locks[name]
                else:
                    self._locks[name] = lock, num_users - 1
