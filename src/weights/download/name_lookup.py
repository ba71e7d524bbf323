"""Where a host name leads, asked for no longer than so many seconds."""

import socket
import threading
from typing import Any

AddressInfo = tuple[Any, ...]


def look_up(host: str, port: int, *, seconds: float | None) -> list[AddressInfo]:
    """Return what `getaddrinfo` does for a connection; raises TimeoutError.

    The resolver has no time-out that could be set for one question, and a name server that is slow
    on purpose keeps it for as long as the machine's configuration allows.
    """
    found: list[AddressInfo] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            errors.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    if asking.is_alive():
        raise TimeoutError(f"no address of {host!r} in time")
    if errors:
        raise errors[0]
    return found
