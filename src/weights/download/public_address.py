"""Connections to public addresses only: what is checked is what is dialled."""

import ipaddress
import os
import socket
import time
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from src.environment import read_flag
from src.errors import UserError
from src.files.printable import printable
from src.weights.download.name_lookup import AddressInfo, look_up

SWITCH = "ALLOW_PRIVATE_URLS"
MAX_ADDRESSES = 8
"""A name's addresses that are tried."""

_NAT64 = IPv6Network("64:ff9b::/96")
_IPV6_PUBLIC = IPv6Network("2000::/3")
# Parts of it that carry an IPv4 address, or are given out for documentation and tests.
_IPV6_SPECIAL = [
    IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
_IPV4_SPECIAL = [
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "100.64.0.0/10",
        "168.63.129.16/32",  # a cloud's own service for its machines, at a public number
        "192.0.0.0/24",
        "192.88.99.0/24",
        "224.0.0.0/3",
    )
]


def private_urls_allowed() -> bool:
    """Tell whether the operator lets URLs lead into the private network."""
    return read_flag(SWITCH, os.environ) or False


def is_public(text: str) -> bool:
    """Tell whether an address is one of the public internet."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is None:
            special = any(address in network for network in _IPV6_SPECIAL)
            return address in _IPV6_PUBLIC and address.is_global and not special
        address = inner
    return address.is_global and not any(address in network for network in _IPV4_SPECIAL)


def resolve_public(host: str, port: int, timeout: float | None) -> list[AddressInfo]:
    """Return where a host name leads, as `getaddrinfo` does; all of it must be public.

    Raises UserError for one address that is not: it may be the one that is meant.
    Raises TimeoutError if the name's server is slow.
    """
    is_here = host.lower().rstrip(".").rpartition(".")[2] == "localhost"
    try:
        found = [] if is_here else look_up(host, port, seconds=timeout)
    except UnicodeError:
        raise OSError(f"{host!r} is no host name") from None
    if is_here or not all(is_public(str(address[0])) for *_, address in found):
        raise UserError(
            # Not which one: the names of a private network are nobody's business.
            f"cannot download from {printable(host, 60)}: expected a public address, found "
            f"one that is not (for a network of your own, set {SWITCH}=1)"
        )
    return found


def connect_public(host: str, port: int, timeout: float | None) -> socket.socket:
    """Connect to the first address that answers, of those that were just checked.

    Raises TimeoutError when the look-up and all attempts together have taken the time.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    last_error: OSError | None = None
    # Asked for once: a second answer could be another one.
    addresses = resolve_public(host, port, timeout)[:MAX_ADDRESSES]
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(f"no address of {host!r} answers in time")
        connection = socket.socket(family, kind, protocol)
        try:
            # A silent one, as IPv6 often is, leaves time for those after it.
            connection.settimeout(left and left / min(2, len(addresses) - number))
            connection.connect(address)
            return connection
        except OSError as error:
            last_error = error
            connection.close()
    raise last_error or OSError(f"{host!r} has no address")
