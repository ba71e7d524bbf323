"""Which addresses are of the public internet."""

import ipaddress
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from src.errors import UserError
from src.files.printable import printable

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


def not_public(host: str) -> UserError:
    """Return the error for a host that leads into a private network."""
    return UserError(
        # Not where: the addresses of a private network are nobody's business.
        f"cannot download from {printable(host, 60)}: expected a public address, found "
        f"one that is not (for a network of your own, set ALLOW_PRIVATE_URLS=1)"
    )
