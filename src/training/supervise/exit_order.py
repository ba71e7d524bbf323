"""In which order processes end, which nobody can tell who only looks now and then."""

import os
import select
from collections.abc import Iterable


class ExitOrder:
    """Hears from the kernel (Linux, from 5.3 on) as each process ends; elsewhere of none."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._pids: dict[int, int] = {}
        """By the descriptor that stands for the process."""

    def watch(self, pids: Iterable[int]) -> None:
        """Hear of these processes too, unless they have ended before."""
        for pid in set(pids).difference(self._pids.values()):
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                continue
            self._pids[descriptor] = pid
            self._epoll.register(descriptor, select.EPOLLIN)

    def wait(self, seconds: float) -> list[int]:
        """Return the processes that have ended, the first one first, after at most so long."""
        # The kernel puts them in line as they end, and gives out the line from its beginning.
        ended = [descriptor for descriptor, _ in self._epoll.poll(seconds)]
        return [self._forget(descriptor) for descriptor in ended]

    def close(self) -> None:
        """Hear of no process any more."""
        for descriptor in list(self._pids):
            self._forget(descriptor)
        self._epoll.close()

    def _forget(self, descriptor: int) -> int:
        self._epoll.unregister(descriptor)
        os.close(descriptor)
        return self._pids.pop(descriptor)
