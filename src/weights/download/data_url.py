"""The content of a data URL."""

import base64
import binascii
from urllib.parse import unquote_to_bytes

from src.errors import UserError

MAX_ESCAPES = 100_000
"""Python's decoder takes 250 bytes and most of a microsecond for each."""


def decode_data_url(url: str, max_bytes: int) -> bytes:
    """Return the content of a data URL."""
    head, comma, body = url.partition(",")
    if not comma:
        raise UserError("not a valid data: URL: expected a comma before the data")
    # A byte takes three characters, or four in base64 if all of it is escaped.
    if len(body) > 4 * max_bytes + 8:
        raise _too_large(max_bytes)
    num_escapes = body.count("%")
    if num_escapes > MAX_ESCAPES:
        raise UserError(
            f"not a valid data: URL: expected at most {MAX_ESCAPES:,} characters written with %, "
            f"found {num_escapes:,}; base64 needs none"
        )
    try:
        data = unquote_to_bytes(body)
    except UnicodeEncodeError:
        raise UserError("not a valid data: URL: it is not valid Unicode text") from None
    if head.lower().endswith(";base64"):
        try:
            data = base64.b64decode(data, validate=True)
        except binascii.Error:
            raise UserError("not a valid data: URL: its base64 text is damaged") from None
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _too_large(max_bytes: int) -> UserError:
    return UserError(f"the data: URL holds more than {max_bytes:,} bytes")
