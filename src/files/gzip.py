"""The text in a gzip file, a block at a time, however hard the file tries to have no end."""

import zlib
from io import RawIOBase
from typing import Any, BinaryIO

from src.errors import UserError

PACKED_BLOCK_BYTES = 64 << 10
"""Small, because what is left of a block is copied with each read and each member."""
FREE_UNPACKED_BYTES = 2**28
MAX_RATIO = 100
"""Text packs to about a quarter, and many times over only where it repeats itself."""
FREE_PACKED_BYTES = 2**20
MAX_GROWTH = 2
"""Only short lines that were packed one by one take more room than before."""


class Gunzip(RawIOBase):
    """The unpacked bytes of one gzip member or of several; zeros behind them are padding."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._packed = b""
        self._num_packed = self._num_unpacked = 0
        self._member = zlib.decompressobj(wbits=31)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill at least a part of the buffer, and none only at the end; return how much."""
        block = b""
        while not block and (not self._member.eof or self._find_next_member()):
            block = self._unpack(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def _find_next_member(self) -> bool:
        packed = self._member.unused_data.lstrip(b"\0")
        while not packed:
            block = self._file.read(PACKED_BLOCK_BYTES)
            if not block:
                return False
            packed = block.lstrip(b"\0")
        self._packed = packed
        self._member = zlib.decompressobj(wbits=31)
        return True

    def _unpack(self, size: int) -> bytes:
        packed = self._packed or self._file.read(PACKED_BLOCK_BYTES)
        try:
            block = self._member.decompress(packed, size)
        except zlib.error as error:
            raise self._damaged(str(error)) from None
        if not packed and not block and not self._member.eof:
            raise self._damaged("it ends too early")
        self._packed = self._member.unconsumed_tail
        self._num_packed += len(packed) - len(self._packed) - len(self._member.unused_data)
        self._num_unpacked += len(block)
        self._check_sizes()
        return block

    def _damaged(self, reason: str) -> UserError:
        return UserError(
            f"{self._name}: the gzip file is damaged or cut off ({reason}); "
            "expected one that gzip -t finds whole"
        )

    def _check_sizes(self) -> None:
        if self._num_unpacked > FREE_UNPACKED_BYTES + MAX_RATIO * self._num_packed:
            raise UserError(
                f"{self._name}: expected text that unpacks to at most {MAX_RATIO} times its "
                "size, found more"
            )
        if self._num_packed > FREE_PACKED_BYTES + MAX_GROWTH * self._num_unpacked:
            raise UserError(
                f"{self._name}: expected packed text, found {self._num_packed:,} bytes of gzip "
                f"that unpack to {self._num_unpacked:,}"
            )
