"""One lock for each name, so that work on one never waits for work on another."""

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from src.errors import UserError
from src.weights.download.deadline import LOOK_SECONDS, CancelToken, always


class KeyedLocks:
    """Locks that exist only while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, list[CancelToken]]] = {}

    @contextmanager
    def hold(self, name: Hashable, is_wanted: CancelToken = always) -> Iterator[CancelToken]:
        """Be the only one with this name; yields whether this one or one who waits wants it still.

        Raises UserError for one who waits and no longer wants it.
        """
        with self._guard:
            lock, wishes = self._locks.setdefault(name, (threading.Lock(), []))
            wishes.append(is_wanted)
        try:
            while not lock.acquire(timeout=LOOK_SECONDS):
                if not is_wanted():
                    raise UserError("the request was canceled")
            try:
                yield lambda: any(wish() for wish in list(wishes))
            finally:
                lock.release()
        finally:
            with self._guard:
                wishes.remove(is_wanted)
                if not wishes:
                    del self._locks[name]
