"""Unpacks gzip a block at a time, however much a block unpacks to."""

import zlib
from typing import BinaryIO

from src.errors import UserError
from src.weights.archive.unpacked_size import check_growth, check_ratio

PACKED_BLOCK_BYTES = 64 << 10
"""Small, because what is left of a block is copied with each read."""
BLOCK_BYTES = 1 << 20


class Gunzip:
    """Unpacks gzip a block at a time, whatever the ratio."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._packed = b""
        self._packed_bytes = self._bytes = 0
        self._unpacker = zlib.decompressobj(wbits=31)

    def read(self, size: int) -> bytes:
        """Return up to so many unpacked bytes, and none only at the end."""
        while not self._unpacker.eof:
            packed = self._packed
            if not packed:
                packed = self._file.read(PACKED_BLOCK_BYTES)
                self._packed_bytes += len(packed)
                check_growth(self._bytes, self._packed_bytes)
            try:
                block = self._unpacker.decompress(packed, size)
            except zlib.error:
                raise UserError("weights archive: its gzip data are damaged") from None
            self._packed = self._unpacker.unconsumed_tail
            if block:
                self._bytes += len(block)
                check_ratio(self._bytes, self._packed_bytes)
                return block
            if not packed and not self._unpacker.eof:
                raise UserError("weights archive: its gzip data end too early")
        self._check_end()
        return b""

    def _check_end(self) -> None:
        """Let only padding follow: a second gzip stream would be a second archive."""
        rest = self._unpacker.unused_data
        while rest or (rest := self._file.read(BLOCK_BYTES)):
            if rest.strip(b"\0"):
                raise UserError(
                    "weights archive: there are data after the end of its gzip data, "
                    "expected one gzip stream"
                )
            rest = b""
