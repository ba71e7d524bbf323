"""Fetch one URL into a file: complete and bounded, or not at all."""

import contextlib
import os
import string
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

import pycurl

from src.environment import read_flag
from src.errors import UserError
from src.files.atomic import replacing_file
from src.files.printable import printable
from src.weights.download.data_url import decode_data_url
from src.weights.download.deadline import CancelToken, Deadline, never
from src.weights.download.transfer import TOO_LARGE, Response, TransferError, get
from src.weights.download.url import check_url, in_ascii, not_valid, printable_url

MAX_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
NO_CONNECTION = "no connection to the server"
INSECURE = "no secure connection"
BROKEN_OFF = "the connection ended before the whole file had arrived"
NO_HTTP = "expected an answer in HTTP/1.1, found something else"
REASONS = {
    pycurl.E_COULDNT_RESOLVE_HOST: NO_CONNECTION,
    pycurl.E_COULDNT_CONNECT: NO_CONNECTION,
    pycurl.E_COULDNT_RESOLVE_PROXY: "expected http_proxy, https_proxy or all_proxy in the "
    "server's environment to be http://HOST:PORT, found no such host",
    pycurl.E_SSL_CACERT_BADFILE: "expected REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE in the server's "
    "environment to name a file or folder of certificates, found none there",
    pycurl.E_SSL_CONNECT_ERROR: INSECURE,
    pycurl.E_PEER_FAILED_VERIFICATION: INSECURE,
    pycurl.E_OPERATION_TIMEDOUT: "the server did not answer in time",
    pycurl.E_GOT_NOTHING: "the connection ended before an answer had arrived",
    pycurl.E_PARTIAL_FILE: BROKEN_OFF,
    pycurl.E_RECV_ERROR: BROKEN_OFF,
    pycurl.E_UNSUPPORTED_PROTOCOL: NO_HTTP,
    pycurl.E_FTP_WEIRD_SERVER_REPLY: NO_HTTP,
    pycurl.E_BAD_CONTENT_ENCODING: "expected the file as it is, found a Transfer-Encoding",
    pycurl.E_FILESIZE_EXCEEDED: "it is larger than {max_bytes:,} bytes",
    TOO_LARGE: "the headers of the answer are too many or too long",
}
"""By libcurl's code. Its own words may repeat the URL's query."""


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
    is_canceled: CancelToken = never,
    headers: Mapping[str, str] | None = None,
    any_address: bool = False,
    is_archive: bool = False,
) -> None:
    """Put what an http(s) or data URL names into a file, which appears only when it is complete.

    The download ends soon after it is canceled. Without `any_address`, only public addresses are
    asked, unless ALLOW_PRIVATE_URLS is 1. Only an archive may be gzip. Raises UserError.
    """
    deadline = Deadline(timeout_seconds, is_canceled)
    # An archive is unpacked at once, and the download then thrown away.
    with (
        replacing_file(path, is_durable=not is_archive) as partial,
        partial.open("xb") as file,
    ):
        if url[:5].lower() == "data:":
            file.write(decode_data_url(url, max_bytes))
        else:
            check_url(url)
            any_address = any_address or bool(read_flag("ALLOW_PRIVATE_URLS", os.environ))
            _fetch_http(
                url, file, headers or {}, max_bytes, deadline,
                any_address=any_address, is_archive=is_archive,
            )  # fmt: skip


def _fetch_http(
    url: str,
    file: BinaryIO,
    headers: Mapping[str, str],
    max_bytes: int,
    deadline: Deadline,
    *,
    any_address: bool,
    is_archive: bool,
) -> None:
    """Write what the URL, or the last of its redirects, leads to."""
    name = printable_url(url)
    origin = urlsplit(url)[:2]

    def wants_body(response: Response) -> bool:
        if "location" in response.headers and response.status in REDIRECTS:
            return False
        _check_form(response, name, is_archive=is_archive)
        return True

    for _ in range(MAX_REDIRECTS + 1):
        # Headers may hold a token: it is for the host that the caller named.
        own = headers if urlsplit(url)[:2] == origin else {}
        try:
            response = get(
                in_ascii(url),
                file,
                headers={**own, "Accept-Encoding": "identity"},
                max_bytes=max_bytes,
                deadline=deadline,
                any_address=any_address,
                wants_body=wants_body,
            )
        except TransferError as error:
            if error.code == pycurl.E_URL_MALFORMAT:
                raise not_valid(url) from None
            reason = REASONS.get(error.code, f"the answer could not be read ({error.code})")
            reason = reason.format(max_bytes=max_bytes)
            raise UserError(f"could not download {name}: {deadline.end() or reason}") from None
        if response.status not in REDIRECTS:
            return
        url = _redirect_target(url, response.headers["location"], name)
        file.seek(0)
        file.truncate()
    raise UserError(f"could not download {name}: more than {MAX_REDIRECTS} redirects")


def _redirect_target(url: str, location: str, name: str) -> str:
    # Bytes that no URL has are escaped, as browsers do it; they were read as Latin-1.
    target = quote(location.encode("latin-1"), safe=string.punctuation)
    with contextlib.suppress(ValueError):  # check_url says it better
        target = urljoin(url, target)
    try:
        check_url(target)
    except UserError as error:
        raise UserError(f"could not download {name}, which redirects elsewhere: {error}") from None
    return target


def _check_form(response: Response, name: str, *, is_archive: bool) -> None:
    """Refuse what is not the file as it is."""
    if response.status != 200:
        raise HttpError(name, response.status)
    # What a server calls the encoding of a .tar.gz is often its own form. Nothing is decoded here.
    own_forms = ("gzip", "x-gzip") if is_archive else ()
    found = response.headers.get("content-encoding", "").strip().lower()
    if found not in ("", "identity", *own_forms):
        raise UserError(
            f"could not download {name}: expected the file as it is, "
            f"found Content-Encoding {printable(found, 20)}"
        )
