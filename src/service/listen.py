"""Where the service listens: the port is taken before anything else begins."""

import socket

from src.errors import UserError


def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Return a bound socket for each address of a host; raises UserError where there is none."""
    place = f"--host {host} --port {port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"{place}: expected the name or address of this machine") from None
    sockets = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        opened = socket.socket(family, kind, protocol)
        sockets.append(opened)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            opened.bind(address)
        except (OSError, OverflowError) as error:
            for one in sockets:
                one.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{place}: cannot listen there: {reason}") from None
    return sockets
