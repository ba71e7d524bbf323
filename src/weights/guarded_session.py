"""An HTTP session that dials public addresses only, and ends with one's patience whatever comes."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util import parse_url
from urllib3.util.connection import create_connection

from src.weights.patience import LOOK_SECONDS, Patience
from src.weights.public_address import connect_public, resolve_public

LOOK_UP_SECONDS = 10.0
"""For a name that is then left to a proxy."""


class Watchdog:
    """Shuts every connection it was shown when the patience ends.

    The time-outs of a socket are for each read: a byte now and then, in the headers or in the
    handshake, would satisfy them for ever.
    """

    def __init__(self, patience: Patience) -> None:
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

    def __init__(self, *, patience: Patience, any_address: bool) -> None:
        super().__init__()
        self._watchdog = Watchdog(patience)
        # A stranger's URL must not make us send what ~/.netrc holds.
        self.auth = _no_credentials
        for scheme in ("http://", "https://"):
            self.mount(scheme, _GuardedAdapter(self._watchdog, any_address))

    def resolve_redirects(self, *args: Any, **values: Any) -> Iterator[Any]:
        """Follow no redirect: only to foresee the next request, its whole body would be read."""
        return iter(())

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


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
