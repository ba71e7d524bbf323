"""Which URLs are taken, and what of one may be shown."""

import ipaddress
import re
import unicodedata
from urllib.parse import urlsplit

from src.errors import UserError
from src.weights.printable import printable


def check_url(url: str) -> None:
    """Refuse what is no plain http(s) URL; every redirect passes here too."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UserError(f"not a valid URL: {printable_url(url)}") from None
    if parts.scheme.lower() not in ("http", "https"):
        raise UserError(
            f"cannot download {printable_url(url)}: expected an http, https or data URL, "
            f"found {printable(parts.scheme, 20) or 'no'} scheme"
        )
    # Spaces, control characters and backslashes are where two URL parsers disagree about the host.
    bad_characters = re.search(r"[\x00-\x20\x7f\\]", url)
    if not host or port == 0 or bad_characters or not _is_plain_host(host):
        raise UserError(f"not a valid URL: {printable_url(url)}")
    if "@" in parts.netloc:
        raise UserError(
            f"cannot download {printable_url(url)}: a URL with a user name or password is not taken"
        )


def _is_plain_host(host: str) -> bool:
    """Tell whether all readers of the host see the same: no 0177.1, no 2130706433, no %31."""
    plain = unicodedata.normalize("NFKC", host).replace("。", ".").rstrip(".")
    if "%" in host or ":" in host:
        return "%" not in host
    if re.fullmatch("0x[0-9a-f]*|[0-9]+", plain.rpartition(".")[2].lower()) is None:
        return True
    try:
        return str(ipaddress.IPv4Address(plain)) == host
    except ValueError:
        return False


def printable_url(url: str) -> str:
    """Return scheme, host and path: a query may hold a signature, a user part a password."""
    if url[:5].lower() == "data:":
        return "the data: URL"
    bare = re.split(r"[?#]", url, maxsplit=1)[0]
    return printable(re.sub(r"^([^/]*//)[^/]*@", r"\1", bare), 200)
