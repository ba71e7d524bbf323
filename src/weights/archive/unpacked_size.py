"""How much may come out of an archive of weights."""

from src.errors import UserError
from src.files.gzip import UnpackLimits
from src.weights.archive.tar import Read

LIMITS = UnpackLimits("weights archive", max_ratio=20, free_bytes=16 << 20)
"""Trained numbers hardly get smaller, reports and metrics up to ten times."""


class Bounded:
    """Stops a stream that has more bytes than an archive of weights can need."""

    def __init__(self, read: Read, max_bytes: int) -> None:
        self._read = read
        self._max_bytes = max_bytes
        self._left = max_bytes

    def read(self, size: int) -> bytes:
        """Return up to so many bytes of the stream, and none only at its end."""
        block = self._read(size)
        self._left -= len(block)
        if self._left < 0:
            raise UserError(f"weights archive: it holds more than {self._max_bytes:,} bytes")
        return block
