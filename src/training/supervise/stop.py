"""How a run is asked to end and keep its adapter, and when (standard library only)."""

import socket
from collections.abc import Mapping

STOP_FILE = "stop"
"""In the run's folder: the run is to end, keeping what there is."""
STOPPED_FILE = "stopped.json"
"""In the run's folder: the adapter is kept."""
COG_PORT = "5000"
"""Where Cog's server listens when the environment does not say."""
CANCEL_SECONDS = 2.5
SHUTDOWN_SECONDS = 7.0
"""Cog's server ends its worker ten seconds after it is asked to end."""


class ServerWatch:
    """Sees that Cog's server, which tells a training nothing, has closed its port to end."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        port = environ.get("PORT", COG_PORT)
        self.port = int(port) if port.isdigit() else None
        self._was_seen = False

    def is_gone(self) -> bool:
        """Whether the port was open before and is closed now."""
        if self.port is None:
            return False
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except ConnectionRefusedError:
            return self._was_seen
        except OSError:
            return False
        self._was_seen = True
        return False
