"""Which URLs are taken, and what of one may be shown."""

import re
from urllib.parse import urlsplit

import requests

from src.errors import UserError
from src.files.printable import printable

MAX_URL_CHARACTERS = 8192
# Each with the wide and small forms that some readers take for it.
QUERY_MARK = "[?？﹖#＃﹟&＆﹠;；﹔]|%3f"
AT_MARK = "[@＠﹫]"


def check_url(url: str) -> None:
    """Refuse what is no plain http(s) URL; every redirect passes here too."""
    if len(url) > MAX_URL_CHARACTERS:
        raise UserError(
            f"not a valid URL: expected at most {MAX_URL_CHARACTERS:,} characters, "
            f"found {len(url):,}"
        )
    name = printable_url(url)
    # Where two URL parsers disagree about the host.
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise UserError(
            f"not a valid URL: {name}: expected no blanks, control characters or backslashes"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise not_valid(url) from None
    if parts.scheme.lower() not in ("http", "https"):
        raise UserError(
            f"cannot download {name}: expected an http or https URL, "
            f"found {printable(parts.scheme, 20) or 'no'} scheme"
        )
    if not host or port == 0:
        raise not_valid(url)
    if "@" in parts.netloc:
        raise UserError(f"cannot download {name}: a URL with a user name or password is not taken")


def in_ascii(url: str) -> str:
    """Return the URL as it is sent: its host in IDNA, bytes that no URL has escaped."""
    try:
        return requests.Request("GET", url).prepare().url or url
    except requests.exceptions.InvalidURL:
        raise not_valid(url) from None


def not_valid(url: str) -> UserError:
    """Return the error for a URL that leads to no host."""
    return UserError(
        f"not a valid URL: {printable_url(url)}: expected http(s)://HOST/PATH or "
        "http(s)://HOST:PORT/PATH, with a plain host name or address"
    )


def printable_url(text: str) -> str:
    """Return what may be shown of a URL, or of what was perhaps meant as one.

    A query may hold a signature; what stands before an @ may be a password, which may hold any
    character.
    """
    if text[:5].lower() == "data:":
        return "the data: URL"
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*://)?(.*)", text, re.IGNORECASE | re.DOTALL)
    assert match is not None
    scheme, rest = match.groups("")
    bare, *query = re.split(QUERY_MARK, rest, maxsplit=1, flags=re.IGNORECASE)
    # No telling whether the @ belongs to the query, or the mark to a password.
    if query and re.search(AT_MARK, query[0]):
        return printable(f"{scheme}...", 200)
    *hidden, shown = re.split(AT_MARK, bare)
    return printable(scheme + ("...@" if hidden else "") + shown, 200)
