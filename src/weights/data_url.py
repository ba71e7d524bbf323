"""The content of a data URL."""

import base64
import binascii
from urllib.parse import unquote_to_bytes

from src.errors import UserError


def decode_data_url(url: str, max_bytes: int) -> bytes:
    """Return the content of a data URL."""
    head, comma, body = url.partition(",")
    if not comma:
        raise UserError("not a valid data: URL: expected a comma before the data")
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
        raise UserError(f"the data: URL holds more than {max_bytes:,} bytes")
    return data
