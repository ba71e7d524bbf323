"""An HTTP session that dials public addresses only, and ends with one's patience whatever comes."""

import contextlib
import re
import socket
import threading
from collections.abc import Generator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import prepend_scheme_if_needed, select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, LocationParseError, NewConnectionError
from urllib3.util import parse_url
from urllib3.util.connection import create_connection

from src.errors import UserError
from src.weights.download.deadline import LOOK_SECONDS, Deadline
from src.weights.download.public_address import connect_public, resolve_public

LOOK_UP_SECONDS = 10.0
"""For a name that is then left to a proxy."""


class Watchdog:
    """Shuts every connection it was shown when the patience ends.

    The time-outs of a socket are for each read: a byte now and then, in the headers or in the
    handshake, would satisfy them for ever.
    """

    def __init__(self, patience: Deadline) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._stopped = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def watch(self, connection: socket.socket) -> None:
        """Take a copy of the connection: encryption moves the original elsewhere."""
        with self._lock:
            self._connections.append(connection.dup())
        if self._patience.end():
            self._shut()

    def stop(self) -> None:
        """Let go of the connections."""
        self._stopped.set()
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _look(self) -> None:
        while not self._patience.end():
            if self._stopped.wait(min(LOOK_SECONDS, self._patience.seconds_left)):
                return
        self._shut()

    def _shut(self) -> None:
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class GuardedSession(requests.Session):
    """A session for strangers' URLs; with `any_address`, also for those of the operator."""

    def __init__(self, *, patience: Deadline, any_address: bool) -> None:
        super().__init__()
        self._watchdog = Watchdog(patience)
        # A stranger's URL must not make us send what ~/.netrc holds.
        self.auth = _no_credentials
        for scheme in ("http://", "https://"):
            self.mount(scheme, _GuardedAdapter(self._watchdog, any_address))

    def resolve_redirects(
        self, *args: Any, **values: Any
    ) -> Generator[requests.Response, None, None]:
        """Follow no redirect: only to foresee the next request, its whole body would be read."""
        yield from ()

    def close(self) -> None:
        """Close all connections."""
        self._watchdog.stop()
        super().close()


class _GuardedAdapter(HTTPAdapter):
    def __init__(self, watchdog: Watchdog, any_address: bool) -> None:
        self._watchdog, self._any_address = watchdog, any_address
        super().__init__()

    def init_poolmanager(self, *args: Any, **values: Any) -> None:
        """Make pools of connections that are dialled here."""
        super().init_poolmanager(*args, **values)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes(self._any_address)

    def send(self, request: requests.PreparedRequest, *args: Any, **values: Any) -> Any:
        """Refuse what leads to a private address by way of a proxy too."""
        proxy = select_proxy(request.url or "", values.get("proxies"))
        if proxy:
            _check_proxy(proxy)
        host = parse_url(request.url or "").host
        if proxy and host and not self._any_address:
            # A name that only the proxy knows is left to the proxy.
            try:
                resolve_public(host.strip("[]"), 0, LOOK_UP_SECONDS)
            except TimeoutError:
                raise requests.ConnectTimeout("no address in time") from None
            except OSError:
                pass
        return super().send(request, *args, **values)

    def cert_verify(self, *args: Any, **values: Any) -> None:
        """Refuse certificates that are not there; else the name of their file would be an error."""
        try:
            super().cert_verify(*args, **values)
        except OSError:
            raise UserError(
                "cannot download over https: REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE in the server's "
                "environment: expected a file or folder of certificates, found none there"
            ) from None

    def proxy_manager_for(self, *args: Any, **values: Any) -> Any:
        """Dial the operator's own proxy, wherever it is."""
        manager = super().proxy_manager_for(*args, **values)
        manager.pool_classes_by_scheme = self._pool_classes(True)
        return manager

    def _pool_classes(self, any_address: bool) -> dict[str, type[HTTPConnectionPool]]:
        watchdog = self._watchdog

        def dial(connection: HTTPConnection) -> socket.socket:
            host, port = connection._dns_host, connection.port
            timeout = connection.timeout
            assert timeout is None or isinstance(timeout, float | int)
            try:
                if any_address:
                    dialled = create_connection((host, port), timeout)
                else:
                    dialled = connect_public(host, port or connection.default_port, timeout)
            except TimeoutError:
                raise ConnectTimeoutError(connection, "no connection in time") from None
            except OSError as error:
                raise NewConnectionError(connection, str(error)) from None
            watchdog.watch(dialled)
            return dialled

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return dial(self)

        class Encrypted(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return dial(self)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain  # pyright: ignore[reportAssignmentType]

        class EncryptedPool(HTTPSConnectionPool):
            ConnectionCls = Encrypted  # pyright: ignore[reportAssignmentType]

        return {"http": PlainPool, "https": EncryptedPool}


def _check_proxy(proxy: str) -> None:
    try:
        parts = parse_url(prepend_scheme_if_needed(proxy, "http"))
    except LocationParseError:
        parts = None
    if parts is None or not parts.host or parts.scheme not in ("http", "https"):
        scheme = re.match("[a-z0-9]{1,20}(?=://)", proxy, re.IGNORECASE)
        raise UserError(
            "cannot download: http_proxy, https_proxy or all_proxy in the server's environment: "
            f"expected http://HOST:PORT, found {f'{scheme[0]}://...' if scheme else 'no address'}"
        )


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
