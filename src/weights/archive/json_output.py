"""The archive in the JSON that `cog train -o FILE` writes: a data URL, decoded as it is read."""

import base64
import binascii
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from src.errors import UserError
from src.files.printable import printable

MAX_BYTES_BEFORE = 1 << 20
"""Room for what stands before the data URL: the answer of an HTTP server has its log there."""
BLOCK_BYTES = 1 << 16
"""Of base64: a multiple of four."""

# Inside a JSON text the key's quotes would be escaped, so this is never a part of one.
_WEIGHTS = re.compile(rb'"weights"\s*:\s*"(?:data:[^",]{0,200};base64,|([^"]{1,2000}))')


def is_json(start: bytes) -> bool:
    """Tell whether a file that begins so may be JSON text."""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"["))


class ArchiveInJson(io.RawIOBase):
    """The bytes of the data URL at `weights` in a JSON file."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises UserError for JSON text without one."""
        found = _WEIGHTS.search(file.read(MAX_BYTES_BEFORE))
        if found is None or found[1]:
            what = "JSON text"
            if found is not None:
                what = f"JSON text whose weights are {printable(found[1].decode('latin-1'))!r}"
            raise UserError(
                f"the weights are not a .tar or .tar.gz archive: found {what}, expected it to hold "
                "one as a base64 data: URL, as cog train writes it"
            )
        file.seek(found.end())
        self._blocks, self._rest = _decoded(file), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill at least a part of the buffer, and none only at the end; return how much."""
        self._rest = self._rest or next(self._blocks, b"")
        block, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(block)] = block
        return len(block)


def _decoded(file: BinaryIO) -> Iterator[bytes]:
    """Yield the bytes of base64 text up to the quote behind it."""
    is_whole = False
    while not is_whole and (block := file.read(BLOCK_BYTES)):
        text, quote, _ = block.partition(b'"')
        is_whole = bool(quote)
        try:
            yield base64.b64decode(text, validate=True)
        except binascii.Error:
            break
    if not is_whole:
        raise UserError("weights archive: the base64 text in the JSON is damaged or cut off")
