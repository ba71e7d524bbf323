"""One lock for each name, so that work on one never waits for work on another."""

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from src.errors import UserError
from src.weights.download.deadline import LOOK_SECONDS, CancelToken, never


class KeyedLocks:
    """Locks that exist only while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, list[CancelToken]]] = {}

    @contextmanager
    def hold(self, name: Hashable, is_canceled: CancelToken = never) -> Iterator[CancelToken]:
        """Be the only one with this name; yields a token of this one and all who wait together.

        Raises UserError for one who is canceled while waiting.
        """
        with self._guard:
            lock, tokens = self._locks.setdefault(name, (threading.Lock(), []))
            tokens.append(is_canceled)
        try:
            while not lock.acquire(timeout=LOOK_SECONDS):
                if is_canceled():
                    raise UserError("the request was canceled")
            try:
                yield lambda: all(token() for token in list(tokens))
            finally:
                lock.release()
        finally:
            with self._guard:
                tokens.remove(is_canceled)
                if not tokens:
                    del self._locks[name]
