"""How clients reach the service, and which URLs are its own."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from starlette.requests import Request

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "host.docker.internal")
_OWN = re.compile(
    r"/(?:v1/)*(?P<kind>files|uploads|weights)/(?P<id>[\w-]+)(?:/(?P<capability>[0-9a-f]{48}))?(?:/|$)"
)


@dataclass(frozen=True)
class OwnAddress:
    """A file of the service, as a URL names it."""

    kind: str
    """files, uploads or weights."""
    id: str
    capability: str | None


def base_url(request: Request) -> str:
    """Return the address at which this client reached the service, without a slash at its end."""
    return request.app.state.settings.public_url or str(request.base_url).rstrip("/")


def own_address(url: object, base: str) -> OwnAddress | None:
    """Return what a URL names, if it is one of the service's own that `base` reaches."""
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        return None
    try:
        asked, own = urlsplit(url), urlsplit(base)
        is_own = asked.netloc == own.netloc or (
            asked.port == own.port
            and f"{asked.hostname}" in _LOOPBACK
            and own.hostname in _LOOPBACK
        )
    except ValueError:
        return None
    match = _OWN.search(unquote(asked.path))
    if not is_own or match is None:
        return None
    return OwnAddress(match["kind"], match["id"], match["capability"])
