"""Sees that Cog's server is about to end, of which it tells a training nothing."""

import socket
import time
from contextlib import suppress
from typing import Protocol

import psutil

GLANCE_SECONDS = 1.0


class Server(Protocol):
    """Whoever a training is for: when they end, it ends too, and keeps what it can."""

    def is_gone(self, *, now: bool = False) -> bool:
        """Whether they have ended or are about to; `now` asks for a look at this moment."""
        ...


class ServerWatch:
    """Watches the port of Cog's server, which it closes ten seconds before it ends its worker."""

    def __init__(self, port: int | None, server: int) -> None:
        """Without a port it is the one at which the process `server` listens, if there is one."""
        with suppress(psutil.Error):
            sockets = psutil.Process(server).net_connections("tcp") if port is None else []
            port = port or next((s.laddr.port for s in sockets if s.status == "LISTEN"), None)
        self.port, self._was_seen, self._next_glance = port, False, 0.0

    def is_gone(self, *, now: bool = False) -> bool:
        """Whether the port was open before and is closed now; looks once a second, or `now`."""
        if self.port is None or not (now or time.monotonic() >= self._next_glance):
            return False
        self._next_glance = time.monotonic() + GLANCE_SECONDS
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except ConnectionRefusedError:
            return self._was_seen
        except OSError:
            return False
        self._was_seen = True
        return False
