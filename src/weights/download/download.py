"""Fetch one URL into a file: whole and bounded, or not at all."""

import contextlib
import os
import re
import secrets
import string
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, LocationValueError

from src.errors import UserError
from src.files.printable import printable
from src.weights.download.data_url import decode_data_url
from src.weights.download.deadline import CancelToken, Deadline, always
from src.weights.download.guarded_session import GuardedSession
from src.weights.download.public_address import private_urls_allowed
from src.weights.download.reason import reason
from src.weights.download.url import check_url, not_valid, printable_url

MAX_REDIRECTS = 10
CONNECT_SECONDS = 15
READ_SECONDS = 30
BLOCK_BYTES = 1 << 20


class HttpError(UserError):
    """The server answered, and not with the file."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"could not download {printable_url(url)}: HTTP {status}")
        self.status = status


def fetch(
    url: str,
    path: Path,
    *,
    max_bytes: int,
    timeout_seconds: float = 600,
    is_wanted: CancelToken = always,
    headers: dict[str, str] | None = None,
    any_address: bool = False,
    is_archive: bool = False,
) -> None:
    """Put what an http(s) or data URL names into a file, which appears only when it is whole.

    The download ends soon after it is no longer wanted. Without `any_address`, only public
    addresses are asked, unless ALLOW_PRIVATE_URLS is 1. Only an archive may be gzip.
    """
    patience = Deadline(timeout_seconds, is_wanted)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            if url[:5].lower() == "data:":
                file.write(decode_data_url(url, max_bytes))
            else:
                check_url(url)
                with GuardedSession(
                    patience=patience, any_address=any_address or private_urls_allowed()
                ) as session:
                    _fetch_http(
                        session, url, file, max_bytes, patience, headers or {},
                        is_archive=is_archive,
                    )  # fmt: skip
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _fetch_http(
    session: requests.Session,
    url: str,
    file: BinaryIO,
    max_bytes: int,
    patience: Deadline,
    headers: dict[str, str],
    *,
    is_archive: bool,
) -> None:
    name = printable_url(url)
    try:
        with contextlib.closing(_open(session, url, headers, patience)) as response:
            _check_form(response, name, is_archive=is_archive)
            _copy_body(response, file, name, max_bytes, patience)
    except UserError:
        if patience.end():
            raise _ended(patience, name) from None
        raise
    except (requests.RequestException, HTTPError, ValueError) as error:
        # When the patience ends the connection is shut, which looks like any other end of it.
        if patience.end():
            raise _ended(patience, name) from None
        raise UserError(f"could not download {name}: {reason(error)}") from None


def _open(
    session: requests.Session, url: str, headers: dict[str, str], patience: Deadline
) -> requests.Response:
    """Return the first answer that is not a redirect."""
    origin = urlsplit(url)[:2]
    name = printable_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        seconds = _seconds_left(patience, name)
        # Headers may hold a token: it is for the host that the caller named.
        own = headers if urlsplit(url)[:2] == origin else {}
        try:
            response = session.get(
                url,
                headers={**own, "Accept-Encoding": "identity"},
                stream=True,
                allow_redirects=False,
                timeout=(min(CONNECT_SECONDS, seconds), min(READ_SECONDS, seconds)),
            )
        except (requests.exceptions.InvalidURL, LocationValueError):
            raise not_valid(url) from None
        if not response.is_redirect:
            return response
        response.close()
        url = _target(url, response.headers["Location"], name)
    raise UserError(f"could not download {name}: more than {MAX_REDIRECTS} redirects")


def _target(url: str, location: str, name: str) -> str:
    """Return where a redirect leads."""
    # Bytes that no URL has are escaped, as browsers do it; they were read as Latin-1.
    target = quote(location.encode("latin-1"), safe=string.punctuation)
    with contextlib.suppress(ValueError):  # check_url says it better
        target = urljoin(url, target)
    try:
        check_url(target)
    except UserError as error:
        raise UserError(f"could not download {name}, which redirects elsewhere: {error}") from None
    return target


def _check_form(response: requests.Response, name: str, *, is_archive: bool) -> None:
    """Refuse what is not the file as it is."""
    if response.status_code != 200:
        raise HttpError(name, response.status_code)
    # What a server calls the encoding of a .tar.gz is often its own form. Nothing is decoded here.
    own_forms = ("gzip", "x-gzip") if is_archive else ()
    for header, taken in {
        "Content-Encoding": ("", "identity", *own_forms),
        "Transfer-Encoding": ("", "identity", "chunked"),
    }.items():
        found = response.headers.get(header, "").strip().lower()
        if found not in taken:
            raise UserError(
                f"could not download {name}: expected the file as it is, "
                f"found {header} {printable(found, 20)}"
            )


def _copy_body(
    response: requests.Response, file: BinaryIO, name: str, max_bytes: int, patience: Deadline
) -> None:
    stated = response.headers.get("Content-Length", "")
    expected = int(stated) if re.fullmatch("[0-9]{1,18}", stated) else None
    received = 0
    while max(received, expected or 0) <= max_bytes:
        _seconds_left(patience, name)
        # One read of the socket: to wait for a full block would let a slow drip pass the deadline.
        block = response.raw.read1(BLOCK_BYTES)
        if not block:
            break
        received += len(block)
        file.write(block)
    _seconds_left(patience, name)
    if max(received, expected or 0) > max_bytes:
        raise UserError(f"could not download {name}: it is larger than {max_bytes:,} bytes")
    if expected is not None and received != expected:
        raise UserError(
            f"could not download {name}: expected {expected:,} bytes, found {received:,}"
        )


def _seconds_left(patience: Deadline, name: str) -> float:
    if patience.end():
        raise _ended(patience, name)
    return patience.seconds_left


def _ended(patience: Deadline, name: str) -> UserError:
    return UserError(f"could not download {name}: {patience.end()}")
