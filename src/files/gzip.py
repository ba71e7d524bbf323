"""The data in a gzip file, a block at a time, however hard the file tries to have no end."""

import gzip
import io
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

from src.errors import UserError

FREE_PACKED_BYTES = 2**20
MAX_GROWTH = 2
"""Only what is short and was packed piece by piece takes more room packed than unpacked."""
_BLOCK_BYTES = 2**16


@dataclass(frozen=True)
class UnpackLimits:
    """What packed data may unpack to; errors call them `name`."""

    name: str
    max_ratio: int
    free_bytes: int
    """So many may come from however few packed ones."""

    def check_ratio(self, *, unpacked: int, packed: int) -> None:
        """Refuse what unpacks to far more than such data do: it is there to fill a disk."""
        if unpacked > self.free_bytes + self.max_ratio * packed:
            raise UserError(
                f"{self.name}: {packed:,} packed bytes unpack to {unpacked:,} or more, expected "
                f"at most {self.max_ratio} times as many"
            )

    def check_growth(self, *, unpacked: int, packed: int) -> None:
        """Refuse what is far smaller unpacked than packed: it is there to keep us busy."""
        if packed > FREE_PACKED_BYTES + MAX_GROWTH * unpacked:
            raise UserError(
                f"{self.name}: {packed:,} packed bytes unpack to only {unpacked:,}, expected more "
                "than half as many"
            )


class Gunzip(io.RawIOBase):
    """The unpacked bytes of one gzip member or of several; zeros behind them are padding."""

    def __init__(self, file: BinaryIO, limits: UnpackLimits) -> None:
        self._limits = limits
        self._packed = _PackedBytes(file, limits)
        packed = io.BufferedReader(self._packed, _BLOCK_BYTES)
        self._unpacker = gzip.GzipFile(fileobj=packed, mode="rb")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._packed.file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        """Fill at least a part of the buffer, and none only at the end; return how much.

        Raises UserError for what is damaged, and for what unpacks to too much or too little.
        """
        try:
            block = self._unpacker.read1(len(buffer))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(
                f"{self._limits.name}: the gzip data are damaged or cut off ({error}); "
                "expected what gzip -t finds whole"
            ) from None
        buffer[: len(block)] = block
        self._packed.num_unpacked += len(block)
        self._limits.check_ratio(unpacked=self._packed.num_unpacked, packed=self._packed.num_read)
        return len(block)


class _PackedBytes(io.RawIOBase):
    """Checks what is read, also where the unpacker finds nothing in it for long."""

    num_read = num_unpacked = 0

    def __init__(self, file: BinaryIO, limits: UnpackLimits) -> None:
        self.file = file
        self._limits = limits

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._limits.check_growth(unpacked=self.num_unpacked, packed=self.num_read)
        block = self.file.read(len(buffer))
        buffer[: len(block)] = block
        self.num_read += len(block)
        return len(block)
