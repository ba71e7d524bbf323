"""One HTTP request by libcurl, which dials public addresses only and ends with its deadline."""

import email
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import certifi
import pycurl
from requests.utils import get_environ_proxies, select_proxy

from src.weights.download.deadline import LOOK_SECONDS, Deadline
from src.weights.download.public_address import is_public, not_public

CONNECT_SECONDS = 15
SILENCE_SECONDS = 30
MAX_ADDRESSES = 8
"""A name's addresses that are tried."""
MAX_HEADER_LINES = 20_000
"""libcurl bounds the headers, but not the trailers behind the body."""
MAX_ANSWER_BYTES = 1 << 20
"""Of what answers a body that is sent."""
TOO_LARGE = 100
"""libcurl's code for too many headers, which pycurl does not name."""


@dataclass(frozen=True)
class Response:
    """The status of an answer and its headers, by name in lower case."""

    status: int
    headers: dict[str, str]


class TransferError(Exception):
    """The transfer broke off; `code` is libcurl's."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def get(
    url: str,
    body: BinaryIO,
    *,
    headers: Mapping[str, str],
    max_bytes: int,
    deadline: Deadline,
    any_address: bool,
    wants_body: Callable[[Response], bool],
) -> Response:
    """Ask for a URL, and write the body of the answer if it is wanted.

    Raises UserError for an address that is not public, unless any is allowed, and TransferError
    for an answer that does not arrive complete.
    """
    response = None
    with _request(url, headers, deadline, any_address) as (handle, lines, steps):
        handle.setopt(pycurl.MAXFILESIZE_LARGE, max_bytes)
        # Written in C: an exception in a callback, such as Cog's cancel, would be lost.
        handle.setopt(pycurl.WRITEDATA, body)
        for _ in steps:
            if response is None:
                response = _read_head(handle.getinfo(pycurl.RESPONSE_CODE), lines)
                if response is not None and not wants_body(response):
                    break
    assert response is not None
    return response


def post(
    url: str, body: bytes, *, headers: Mapping[str, str], deadline: Deadline, any_address: bool
) -> int:
    """Send a body, and return the status of the answer; what else is in it is not read.

    Raises UserError for an address that is not public, unless any is allowed, and TransferError
    where no answer arrives.
    """
    # Without Expect: a server that does not know it would be waited for.
    with _request(url, {**headers, "Expect": ""}, deadline, any_address) as (handle, lines, steps):
        handle.setopt(pycurl.POSTFIELDS, body)
        handle.setopt(pycurl.MAXFILESIZE_LARGE, MAX_ANSWER_BYTES)
        handle.setopt(pycurl.WRITEFUNCTION, len)
        response = None
        for _ in steps:
            response = _read_head(handle.getinfo(pycurl.RESPONSE_CODE), lines)
            # A server may answer before it has read all, and then goes on reading.
            if response is not None and handle.getinfo(pycurl.SIZE_UPLOAD_T) >= len(body):
                break
    assert response is not None
    return response.status


@contextmanager
def _request(
    url: str, headers: Mapping[str, str], deadline: Deadline, any_address: bool
) -> Iterator[tuple[pycurl.Curl, list[bytes], Iterator[None]]]:
    """Context of a handle, of the answer's header lines, and of the steps that run it."""
    proxy = select_proxy(url, get_environ_proxies(url)) or ""
    if proxy and not any_address:
        _check_name(url, deadline)
    dialler = _Dialler(any_address or bool(proxy), MAX_ADDRESSES)
    lines: list[bytes] = []
    with _transfer(url, proxy, dialler, deadline) as (handle, steps):
        handle.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in headers.items()])
        handle.setopt(pycurl.HEADERFUNCTION, lines.append)
        yield handle, lines, _few_lines(steps, lines)


def _few_lines(steps: Iterator[None], lines: list[bytes]) -> Iterator[None]:
    """Yield each step while the header lines are not too many; else raise TransferError."""
    for _ in steps:
        yield
        if len(lines) > MAX_HEADER_LINES:
            raise TransferError(TOO_LARGE)


def _check_name(url: str, deadline: Deadline) -> None:
    """Refuse a name that leads to a private address; one that only the proxy knows is its own."""
    try:
        with _transfer(url, "", _Dialler(any_address=False, max_addresses=0), deadline) as (
            _,
            steps,
        ):
            for _ in steps:
                pass
    except TransferError as error:
        if error.code == pycurl.E_OPERATION_TIMEDOUT:
            raise


class _Dialler:
    """Opens the sockets that libcurl asks for, each for the address that is then dialled."""

    def __init__(self, any_address: bool, max_addresses: int) -> None:
        self._any_address = any_address
        self._max_addresses = max_addresses
        self.sockets: list[socket.socket] = []
        """libcurl closes its own copies of them."""
        self.has_refused = False

    def open_socket(self, purpose: int, address: Any) -> socket.socket | int:
        if not (self._any_address or is_public(str(address.addr[0]))):
            self.has_refused = True
        if self.has_refused or len(self.sockets) == self._max_addresses:
            return pycurl.SOCKET_BAD
        self.sockets.append(socket.socket(address.family, address.socktype, address.protocol))
        return self.sockets[-1]


@contextmanager
def _transfer(
    url: str, proxy: str, dialler: _Dialler, deadline: Deadline
) -> Iterator[tuple[pycurl.Curl, Iterator[None]]]:
    """Context of a handle for one request, and of the steps that run it."""
    certificates = (
        os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certifi.where()
    )
    is_folder = os.path.isdir(certificates)
    handle, multi = pycurl.Curl(), pycurl.CurlMulti()
    try:
        for option, value in {
            pycurl.URL: url,
            pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
            pycurl.CAPATH if is_folder else pycurl.CAINFO: certificates,
            pycurl.PROXY_CAPATH if is_folder else pycurl.PROXY_CAINFO: certificates,
            pycurl.PROXY: proxy,
            pycurl.OPENSOCKETFUNCTION: dialler.open_socket,
            pycurl.NOSIGNAL: 1,
            pycurl.TIMEOUT_MS: max(1, int(1000 * deadline.seconds_left)),
            pycurl.CONNECTTIMEOUT: CONNECT_SECONDS,
            pycurl.LOW_SPEED_LIMIT: 1,
            pycurl.LOW_SPEED_TIME: SILENCE_SECONDS,
        }.items():
            handle.setopt(option, value)
        multi.add_handle(handle)
        yield handle, _steps(multi, deadline)
    except TransferError:
        if dialler.has_refused:
            raise not_public(urlsplit(url).hostname or "") from None
        raise
    finally:
        multi.remove_handle(handle)
        handle.close()
        for opened in dialler.sockets:
            opened.close()
        # It waits for the thread of a slow look-up, which nothing can stop.
        threading.Thread(target=multi.close, daemon=True).start()


def _steps(multi: pycurl.CurlMulti, deadline: Deadline) -> Iterator[None]:
    """Yield now and then until the transfer has ended; raises TransferError if not as it should."""
    num_running = 1
    while num_running:
        _, num_running = multi.perform()
        yield
        if num_running and deadline.end():
            raise TransferError(pycurl.E_OPERATION_TIMEDOUT)
        if num_running:
            multi.select(LOOK_SECONDS)
    for _, code, _ in multi.info_read()[2]:
        raise TransferError(code)


def _read_head(status: int, lines: list[bytes]) -> Response | None:
    """Return the final answer's status and headers once they are there."""
    text = b"".join(lines).decode("latin-1").replace("\r\n", "\n")
    head, end, _ = f"\n{text}".rpartition("\nHTTP/")[2].partition("\n\n")
    if status < 200 or not end:  # told to go on, or by a proxy that a tunnel is there
        return None
    message = email.message_from_string(head.partition("\n")[2])
    names = {name.lower() for name in message}
    return Response(status, {name: ", ".join(message.get_all(name, [])) for name in names})
